"""Large programs of others, each run inside and outside: the same output, the same status, the same files."""

from __future__ import annotations

import hashlib
import os
import subprocess
from pathlib import Path

import pytest

from tests.native.inside import End, Inside, need

GIT = r"""
set -e
export GIT_AUTHOR_DATE=2024-01-01T00:00:00Z GIT_COMMITTER_DATE=2024-01-01T00:00:00Z HOME=/nonexistent
export GIT_AUTHOR_NAME=a GIT_AUTHOR_EMAIL=a@b GIT_COMMITTER_NAME=a GIT_COMMITTER_EMAIL=a@b
export GIT_CONFIG_GLOBAL=/dev/null GIT_CONFIG_SYSTEM=/dev/null
git -c init.defaultBranch=main init -q .
for i in 1 2 3; do seq $i 2000 > file$i; git add .; git commit -qm "commit $i"; done
git gc -q
git fsck --strict
git log --format='%H %s'
git count-objects -v | grep -E 'in-pack|packs'
git diff --stat HEAD~2
git grep -c 1999
git status --short
"""
REDIS = r"""
set -e
redis() { redis-cli -s "$PWD/socket" "$@"; }
redis-server --port 0 --unixsocket "$PWD/socket" --save '' --dir "$PWD" --logfile "$PWD/log" &
server=$!
until redis ping 2>/dev/null | grep -q PONG; do kill -0 $server; done
redis-benchmark -s "$PWD/socket" -q -n 1000 -c 20 -r 500 -d 200 -t incr,lpush,lrange_100,sadd,hset,mset >/dev/null
redis-benchmark -s "$PWD/socket" -q -n 1000 -c 20 -P 16 -t get >/dev/null
redis eval 'for i = 1, 2000 do redis.call("set", "n" .. i, i * i) end return redis.call("get", "n1999")' 0
redis bgsave
until redis info persistence | grep -q rdb_bgsave_in_progress:0; do :; done
redis info persistence | grep rdb_last_bgsave_status
redis llen mylist
redis shutdown nosave
wait $server || echo "status $?"
redis-server --port 0 --unixsocket "$PWD/socket" --save '' --dir "$PWD" --logfile "$PWD/log" &
server=$!
until redis ping 2>/dev/null | grep -q PONG; do kill -0 $server; done
redis get n2000
redis shutdown nosave
wait $server
"""
SQL = r"""
sqlite3 t.db "pragma mmap_size=$1; pragma journal_mode=$2; create table t(a integer primary key, b, c); begin;
with recursive n(i) as (select 1 union all select i + 1 from n where i < 5000)
insert into t select i, i * 7919 % 5003, hex(i) from n; commit; create index x on t(b);
select sum(a), count(distinct b) from t; delete from t where a % 3 = 0; update t set c = c || 'u' where b < 500;
select count(*), sum(length(c)) from t; vacuum; pragma integrity_check; select b from t order by c limit 3;"
sqlite3 t.db "pragma mmap_size=$1; pragma wal_checkpoint(truncate); select count(*), max(b) from t"
"""


def in_two_directories(inside: Inside, directory: Path, *argv: str) -> End:
    """Run a program inside and outside, each in an empty directory; assert that both say the same and end alike."""
    for name in ("in", "out"):
        (directory / name).mkdir()
    within = inside.run(argv, directory=directory / "in")
    assert within == inside.outside(argv, directory=directory / "out")
    return within


def test_git_commits_and_collects(inside: Inside, tmp_path: Path) -> None:
    need("git", "seq")
    assert in_two_directories(inside, tmp_path, "sh", "-c", GIT).status == 0


def test_redis_serves_its_benchmark_and_saves(inside: Inside, tmp_path: Path) -> None:
    need("redis-server", "redis-benchmark", "redis-cli", "bash")
    end = in_two_directories(inside, tmp_path, "bash", "-c", REDIS)
    assert end.status == 0, end
    assert end.output.startswith("3996001\n")
    assert end.output.rstrip().endswith("4000000")


@pytest.mark.parametrize("mmap_bytes", ["0", "268435456"])
@pytest.mark.parametrize("journal", ["delete", "wal"])
def test_sqlite_with_and_without_mapped_files(inside: Inside, tmp_path: Path, journal: str, mmap_bytes: str) -> None:
    need("sqlite3")
    assert in_two_directories(inside, tmp_path, "sh", "-c", SQL, "sh", mmap_bytes, journal).status == 0
    within, outside = (hashlib.sha256((tmp_path / name / "t.db").read_bytes()) for name in ("in", "out"))
    assert within.digest() == outside.digest()


def test_a_static_go_program(inside: Inside, tmp_path: Path) -> None:
    need("go")
    own = {"CGO_ENABLED": "0", "GOCACHE": str(tmp_path / "cache"), "GO111MODULE": "off", "GOFLAGS": ""}
    source, program = Path(__file__).parent / "c" / "work.go", tmp_path / "work"
    subprocess.run(["go", "build", "-o", program, source], env={**os.environ, **own}, check=True)
    end = inside.agrees([str(program)])
    assert end.status == 4
    assert "invalid memory address" in end.output
