// Why the hardware engine can't be had, or stopped.
internal import HostOS

/// A failure of the host's KVM: what happened, with the values in it, and what to do.
public struct KVMError: Error, CustomStringConvertible, Sendable, Equatable {
    /// The kind of failure.
    public struct Code: Hashable, Sendable {
        private let name: String
        private init(_ name: String) { self.name = name }

        /// There is no /dev/kvm.
        public static let absent = Code("absent")
        /// This user may not open it.
        public static let forbidden = Code("forbidden")
        /// It lacks what the engine stands on.
        public static let unsuitable = Code("unsuitable")
        /// It runs an ordinary kernel far slower than the processor could.
        public static let slow = Code("slow")
        /// A call failed.
        public static let refused = Code("refused")
    }

    /// The kind of failure.
    public var code: Code
    /// What is wrong, in one line.
    public var description: String

    /// Makes an error from its parts.
    public init(_ code: Code, _ description: String) {
        self.code = code
        self.description = description
    }

    /// A call that the host refused.
    init(_ doing: String, _ error: HostError) { self.init(.refused, "KVM: \(doing): \(error.reason)") }
}

/// Runs a call of the host's; its failure becomes a `KVMError` that says what was being done.
@inline(__always)
@discardableResult
func asking<Result>(
    _ doing: @autoclosure () -> String, _ call: () throws(HostError) -> Result
) throws(KVMError) -> Result {
    do { return try call() } catch { throw KVMError(doing(), error) }
}
