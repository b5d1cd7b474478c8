#!/bin/sh
# Prints how many compilers may work at once: one a core, as long as each has 1.5 GB of the memory that is free.
# usage: count_jobs.sh [MEMINFO]
cores=$(nproc 2>/dev/null || getconf _NPROCESSORS_ONLN)
free_kb=$(awk '/^MemAvailable:/ { print $2 }' "${1:-/proc/meminfo}" 2>/dev/null)
jobs=$((${free_kb:-1000000000} / 1500000))
[ "$jobs" -lt "$cores" ] || jobs=$cores
[ "$jobs" -gt 1 ] || jobs=1
echo "$jobs"
