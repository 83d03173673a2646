// What a device can ask of the machine as a whole.

/// Why a machine ends or starts again.
public enum PowerEvent: Sendable, Equatable, Codable {
    /// The guest switched itself off (ACPI S5).
    case powerOff
    /// The guest asked for a reset (ACPI reset register, port 0xCF9, i8042 line, triple fault excluded).
    case reset
    /// The debug-exit port was written: Roost ends with this status.
    case debugExit(status: Int32)
    /// The guest's kernel has panicked, and that is to be the end.
    case panic
}

/// The machine's side of power-off and reset; devices call it from any thread.
public protocol PowerControl: AnyObject, Sendable {
    /// Asks for an event; it takes effect when the vCPUs have stopped.
    func request(_ event: PowerEvent)
}
