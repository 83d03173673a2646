// Errors of the host's operating system: the only reader of errno.
internal import Glibc

/// A system call that failed: which one, on what, and the host's errno.
public struct HostError: Error, CustomStringConvertible, Sendable, Equatable {
    /// The system call or library function, with what it was applied to.
    public var operation: String
    /// The host's error number (`errno(3)`).
    public var errno: Int32

    /// Makes an error from its parts.
    public init(_ operation: String, errno: Int32) {
        self.operation = operation
        self.errno = errno
    }

    /// The error left in `errno` by the call just made.
    public static func last(_ operation: @autoclosure () -> String) -> HostError {
        let code = Glibc.errno
        return HostError(operation(), errno: code)
    }

    /// What the host says of the error, in words.
    public var reason: String { String(cString: strerror(errno)) }

    /// One line: the operation and the reason.
    public var description: String { "\(operation): \(reason)" }
}

/// Runs a system call again while it is interrupted by a signal; throws its errno otherwise.
@inline(__always)
public func retrying<Result: SignedInteger>(
    _ operation: @autoclosure () -> String, _ call: () -> Result
) throws(HostError) -> Result {
    while true {
        let result = call()
        if result != -1 { return result }
        let code = Glibc.errno
        if code != EINTR { throw HostError(operation(), errno: code) }
    }
}
