source common.gdb
break stepped
break middle
run
delete 2
define steps
  set $left = $arg0
  while $left > 0
    stepi
    # Counters up to 10; what is in RCX else depends on the processor. All flags but the resume flag.
    printf "%#lx %#x %d\n", $pc, $eflags & 0xfff, $rcx > 10 ? -1 : $rcx
    set $left = $left - 1
  end
end
steps 200
continue
# They depend on where the stack is.
set $eflags = 0x202
steps 70
finish
kill
