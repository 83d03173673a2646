// State is plain data (law 3).

/// A component that can be saved and rebuilt. `State` is all that it needs, Codable, with a `version` field of its own.
public protocol Saveable: AnyObject {
    /// The component's whole state as plain data.
    associatedtype State: Codable & Sendable
    /// Takes the state; the machine is stopped at the door.
    func saveState() -> State
    /// Puts a state back, validating it; throws a `StateError` and changes nothing when it doesn't fit.
    func restoreState(_ state: State) throws
}

/// A saved state that can't be put back, and why.
public struct StateError: Error, CustomStringConvertible, Equatable, Sendable {
    /// What is wrong, in one line.
    public var description: String

    /// Makes an error with its reason.
    public init(_ description: String) { self.description = description }
}
