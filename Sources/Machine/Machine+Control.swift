// Run control: what can be asked of a machine while it runs, from any thread.
internal import DeviceModel
internal import Devices

extension Machine {
    /// What it is doing.
    public var state: MachineState { isPaused ? .paused : activity.state }

    /// Sets who is told of events, on the thread where they happen; one listener.
    public func onEvent(_ listener: @escaping @Sendable (MachineEvent) -> Void) { activity.listen(listener) }

    /// Presses the power button (ACPI 6.5, 4.8.2.2.1): the guest decides what that means. Not while it is paused: nothing
    /// reaches it then.
    public func powerButton() {
        activity.note(.powerButton)
        door.admit(.powerButton) { [acpi = board.acpi] _ in acpi.pressPowerButton() }
    }

    /// Resets the guest, as the button on a PC's case does.
    public func reset() { processors[0].request(.reset) }

    /// Bytes of memory that the guest is asked to give back from now on.
    public func setBalloon(_ bytes: UInt64) { backends.balloon?.setWanted(bytes) }

    /// Bytes of memory that the balloon holds and those given back by free page reporting.
    public var returnedMemory: UInt64 { backends.balloon?.readStatistics().returned ?? 0 }

    /// How much its disks and network cards have moved.
    public var traffic: TrafficCount { board.traffic.count }
}
