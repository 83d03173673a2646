source common.gdb
handle SIGUSR1 nostop noprint pass
handle SIGUSR2 stop print nopass
run
print $_siginfo.si_signo
print $_siginfo.si_code
print $_siginfo._sifields._sigfault.si_addr
print $pc
backtrace
x/i $pc
break handler
continue
print number
backtrace 3
continue
print $_siginfo.si_code
print $_siginfo._sifields._sigfault.si_addr == $pc
x/i $pc
continue
print number
continue
print $_siginfo.si_code
x/i $pc
continue
print number
continue
print $_siginfo.si_code
x/i $pc
backtrace
continue
print number
backtrace
finish
stepi
stepi
stepi
info registers rip
continue
print $_siginfo.si_signo
signal SIGTERM
print number
backtrace 3
delete
continue
print $_exitcode
