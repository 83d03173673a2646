source common.gdb
handle SIGSEGV SIGFPE SIGILL SIGUSR1 SIGUSR2 nostop noprint pass
break loop
run
delete
watch watched[3]
continue
continue
info watchpoints
watch total if total > 300
rwatch watched[0]
awatch watched[2]
disable 2
continue
continue
disable 5
continue
print value
disable 3
enable 2 5
continue
continue
delete
watch main::to[0] if main::to[0] == 's'
watch main::to[8]
hbreak handler
continue
continue
continue
continue
print number
delete
watch total if total == 844
continue
backtrace
info watchpoints
delete
continue
