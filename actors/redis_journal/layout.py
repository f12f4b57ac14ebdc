"""Which keys a store has on its server, and what is done to them in one step.

Owns the names and the scripts. It must not know connections or what an entry means. A store has

    trilogue:{CLUSTER/NAME}                  hash: `identity` (JSON, as store.json), `owner`
    trilogue:{CLUSTER/NAME/STORE/P}:head     hash: `owner`, `end`, `chain`, `epoch`: one for each partition P, always
    trilogue:{CLUSTER/NAME/STORE/P}:log      hash: offset -> entry

An entry is a frame or a control record, the same bytes as in a journal file; its offset is the sum of the sizes before it.
`end` is the sum of all, `chain` a CRC over all entries' headers, one after the other, `epoch` the fence in force. A thin frame
(``protocol.thinning``) counts as the frame whose place it took: its size and its header are those that it holds inside. Rules:

1. The two keys of a partition lie in one hash slot, and one script changes both: all of its entries, or none.
2. A script writes only for the owner, only at the end that the owner knows, and never under a fence that is lower. Who
   opens a journal becomes its owner: whoever had it open gets nothing more in.
3. The store's UUID is in the names: what is left of an earlier store is never taken for the present one's, and never removed.
4. Whoever replaces an entry has read it, and knows that its place is his: the script replaces that very one.
5. Numbers that may be large are compared as texts: Lua's have 53 bits.
"""

from __future__ import annotations

from hashlib import sha1
from typing import Final, NamedTuple

ID_CHARACTERS: Final = 12


class Keys(NamedTuple):
    """The names of one partition's keys."""

    head: bytes
    log: bytes


def identity_key(cluster: str, name: str) -> bytes:
    """Where the store says who it is."""
    return f"trilogue:{{{cluster[:ID_CHARACTERS]}/{name}}}".encode()


def partition_keys(cluster: str, name: str, store: str, partition: int) -> Keys:
    """Where a partition's log is."""
    slot = f"trilogue:{{{cluster[:ID_CHARACTERS]}/{name}/{store[:ID_CHARACTERS]}/{partition}}}"
    return Keys(f"{slot}:head".encode(), f"{slot}:log".encode())


def keys_of_cluster(cluster: str) -> str:
    """The pattern that the names of all keys of all stores of the cluster match."""
    return f"trilogue:{{{cluster[:ID_CHARACTERS]}/*"


class Script(NamedTuple):
    """What a server does in one step."""

    text: str
    sha: str


def _script(text: str) -> Script:
    text = text.strip() + "\n"
    return Script(text, sha1(text.encode()).hexdigest())


OWN: Final = _script("""
#!lua flags=allow-oom
redis.call('HSET', KEYS[1], 'owner', ARGV[1])
return 1
""")
"""KEYS identity; owner -> 1. A full server may still be read: so this, and the next one, are allowed there."""

CLAIM: Final = _script("""
#!lua flags=allow-oom
local head = redis.call('HMGET', KEYS[1], 'end', 'chain', 'epoch')
local made = 0
if not head[1] then
    head, made = {'0', '0', '0'}, 1
    redis.call('HSET', KEYS[1], 'end', '0', 'chain', '0', 'epoch', '0')
end
redis.call('HSET', KEYS[1], 'owner', ARGV[1])
return {made, head[1], head[2], head[3]}
""")
"""KEYS head; owner -> [whether it was made now, end, chain, epoch]"""

APPEND: Final = _script("""
local head = redis.call('HMGET', KEYS[1], 'owner', 'end', 'chain', 'epoch')
if not head[1] then return 'its keys are gone' end
if head[1] ~= ARGV[1] then return 'another process has taken this store' end
if head[2] ~= ARGV[2] or head[3] ~= ARGV[3] then
    return 'its log ends at byte ' .. head[2] .. ', and should end at ' .. ARGV[2]
end
local now, epoch = head[4], ARGV[4]
if #epoch < #now or (#epoch == #now and epoch < now) then return 'the fence of epoch ' .. now .. ' is in force' end
for k = 7, #ARGV, 2 do
    redis.call('HSET', KEYS[2], ARGV[k], ARGV[k + 1])
end
redis.call('HSET', KEYS[1], 'end', ARGV[5], 'chain', ARGV[6], 'epoch', epoch)
return 1
""")
"""KEYS head log; owner, end, chain, the fence from now on, the new end and chain, then offset and entry … -> 1, or why not"""

WALK: Final = _script("""
local at, upto, most = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local found, size = {}, 0
while at < upto and size < most do
    local entry = redis.call('HGET', KEYS[1], string.format('%.0f', at))
    if not entry or #entry == 0 then break end
    found[#found + 1] = entry
    local step = #entry
    if string.byte(entry, 7) == 32 and #entry >= 128 then
        local a, b, c, d = string.byte(entry, 109, 112)
        step = 64 + math.ceil((a + b * 256 + c * 65536 + d * 16777216) / 8) * 8
    end
    at, size = at + step, size + #entry
end
return found
""")
"""KEYS log; from, upto, about how many bytes -> the entries one behind the other"""

PART: Final = _script("""
local entry, skip = redis.call('HGET', KEYS[1], ARGV[1]), tonumber(ARGV[3])
if not entry then
    entry, skip = redis.call('HGET', KEYS[1], ARGV[2]), skip + tonumber(ARGV[1]) - tonumber(ARGV[2])
    if entry and string.byte(entry, 7) == 32 then skip = skip + 64 end
end
if not entry then return false end
return string.sub(entry, skip + 1, skip + tonumber(ARGV[4]))
""")
"""KEYS log; offset, the offset of the record that it may lie in, how far from there, how many bytes -> them"""

REWRITE: Final = _script("""
#!lua flags=allow-oom
if redis.call('HGET', KEYS[1], 'owner') ~= ARGV[1] then return 'another process has taken this store' end
local there = redis.call('HGET', KEYS[2], ARGV[2])
if not there then return 'nothing lies there' end
if redis.sha1hex(there) ~= ARGV[3] then return 'another entry lies there' end
redis.call('HSET', KEYS[2], ARGV[2], ARGV[4])
return 1
""")
"""KEYS head log; owner, offset, the SHA-1 of the entry that lies there, entry -> 1, or why not. An entry becomes larger only
when a frame comes back that went bad, so a full server may do it, too."""

SCRIPTS: Final = (OWN, CLAIM, APPEND, WALK, PART, REWRITE)


def rewrite(keys: Keys, owner: str, offset: int, there: bytes, entry: bytes) -> list[bytes | str | int]:
    """The command that lets `entry` take the place of the entry `there`."""
    return call(REWRITE, keys, owner, offset, sha1(there).hexdigest(), entry)


def call(script: Script, keys: tuple[bytes, ...], *arguments: bytes | str | int) -> list[bytes | str | int]:
    """The command that runs the script."""
    return ["EVALSHA", script.sha, len(keys), *keys, *arguments]
