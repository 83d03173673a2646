source common.gdb
break leaf if value == 17
break loop
run
print count
continue
backtrace
info registers rip
finish
up
info locals
delete
tbreak 28 if i == 30
hbreak leaf
commands
silent
printf "leaf %d at %#lx\n", value, $pc
end
continue
continue
info breakpoints
continue
finish
up
print sum
display/i $pc
stepi
nexti
undisplay 1
delete
break middle
continue
next
step
return 1000
next
print total
delete
print leaf(5)
print total
continue
handle SIGSEGV SIGFPE SIGILL SIGUSR1 SIGUSR2 nostop noprint pass
continue
continue
print $_exitcode
