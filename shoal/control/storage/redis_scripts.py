"""What the Redis storage runs inside the server, where it is one step that nothing can come between.

Every script gets two keys, `META` and `LEASE`. `META` is a hash:

- `version`: of this layout;
- `leader`: the token of the control store that leads, `epoch`: how many have led before it, and itself;
- `applied`: the number of the last commit.

`LEASE` is a string with the leader's token, which expires when the leader stops renewing it. It keeps others from taking the lead while
the leader lives. What keeps an old leader from *writing* is not the lease, whose end it might sleep through, but `leader`, which
`COMMIT` looks at in the same step in which it writes. So there is no moment at which two can write, whatever the clocks say.

A script is sent as text each time, not by its hash: a server that restarted in the middle of a pipeline does not know the hash, and the
commits after the refused one would be refused for a reason that is not theirs.
"""

from __future__ import annotations

from typing import Final

VERSION: Final = 1
"""Raised by any change of layout that an older shoal must not touch."""

# ARGV: token, lease in ms, version.
# {"led", epoch, applied} | {"held", token, ms until it expires} | {"newer", version}
ACQUIRE: Final = """
local version = redis.call('HGET', KEYS[1], 'version')
if version and tonumber(version) > tonumber(ARGV[3]) then
  return {'newer', version}
end
local holder = redis.call('GET', KEYS[2])
if holder and holder ~= ARGV[1] then
  return {'held', holder, redis.call('PTTL', KEYS[2])}
end
redis.call('SET', KEYS[2], ARGV[1], 'PX', ARGV[2])
redis.call('HSET', KEYS[1], 'version', ARGV[3], 'leader', ARGV[1])
local epoch = redis.call('HINCRBY', KEYS[1], 'epoch', 1)
return {'led', epoch, tonumber(redis.call('HGET', KEYS[1], 'applied') or 0)}
"""

# ARGV: token, lease in ms, version, epoch, number of the last commit when this leader began.
# {"led", applied} | {"lost", token of who leads, epoch, applied}
#
# A server may come back without its last second, or be a replica that had not heard of this leader yet. Then the leader may go on if
# nobody else has led or written since it began, as far as this server knows; its own commits it sends again.
RENEW: Final = """
local meta = redis.call('HMGET', KEYS[1], 'leader', 'epoch', 'applied')
local applied = tonumber(meta[3] or 0)
if meta[1] ~= ARGV[1] then
  local holder = redis.call('GET', KEYS[2])
  local epoch = tonumber(meta[2] or 0)
  if holder or epoch >= tonumber(ARGV[4]) or applied ~= tonumber(ARGV[5]) then
    return {'lost', holder or meta[1] or '', epoch, applied}
  end
  redis.call('HSET', KEYS[1], 'version', ARGV[3], 'leader', ARGV[1], 'epoch', ARGV[4])
end
redis.call('SET', KEYS[2], ARGV[1], 'PX', ARGV[2])
return {'led', applied}
"""

# KEYS from the third on: the set of the names of all table keys, then those of the tables that are written.
# ARGV: token, number of the commit, then for each write: which of these tables (negative: delete), key, value.
# {"done"} | {"lost", token of who leads} | {"gap", applied}
#
# "done" is said also of a commit that was applied before: its answer was lost, and it came again; or it sat in the buffer of a
# connection that was given up, and came late.
COMMIT: Final = """
local meta = redis.call('HMGET', KEYS[1], 'leader', 'applied')
if meta[1] ~= ARGV[1] then
  return {'lost', meta[1] or ''}
end
local applied, number = tonumber(meta[2] or 0), tonumber(ARGV[2])
if number <= applied then
  return {'done'}
end
if number > applied + 1 then
  return {'gap', applied}
end
-- A server that is out of memory, or read-only, refuses the first write of a script, and lets one finish that has written.
redis.call('HSET', KEYS[1], 'applied', number)
for i = 4, #KEYS do
  redis.call('SADD', KEYS[3], KEYS[i])
end
for i = 3, #ARGV, 3 do
  local table = tonumber(ARGV[i])
  if table > 0 then
    redis.call('HSET', KEYS[3 + table], ARGV[i + 1], ARGV[i + 2])
  else
    redis.call('HDEL', KEYS[3 - table], ARGV[i + 1])
  end
end
return {'done'}
"""

# ARGV: token. Lets a successor begin at once.
RELEASE: Final = """
if redis.call('GET', KEYS[2]) == ARGV[1] then
  redis.call('DEL', KEYS[2])
end
return {'released'}
"""
