set pagination off
set confirm off
set width 0
set disable-randomization on
set startup-with-shell off
set print frame-arguments scalars
