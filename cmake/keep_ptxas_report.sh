#!/bin/sh
# Runs nvcc and puts what ptxas says of each kernel (-Xptxas=-v), on many lines, into a file beside the object:
# <object>.ptxas. What else is said still goes to standard error. usage: keep_ptxas_report.sh NVCC ... -o OBJECT ...
object=
previous=
for argument; do
  [ "$previous" = -o ] && object=$argument
  previous=$argument
done
report=$object.ptxas
"$@" 2> "$report.said"
status=$?
grep -E '^ptxas info|^ +[0-9]+ bytes stack frame' "$report.said" > "$report"
grep -Ev '^ptxas info|^ +[0-9]+ bytes stack frame' "$report.said" >&2
rm -f "$report.said"
[ "$status" = 0 ] || rm -f "$report"
exit "$status"
