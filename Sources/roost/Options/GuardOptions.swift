// What `--on-panic` and `--watchdog` take.
public import ArgumentParser
public import Machine

extension PanicAction: ExpressibleByArgument {}
extension WatchdogAction: ExpressibleByArgument {}
