// What can go wrong with machines that are kept, in words for the person at the terminal.

/// Why a machine could not be found, made, reached or changed.
public struct MachinesError: Error, CustomStringConvertible, Sendable, Equatable {
    /// The kind of failure, for those who act on it.
    public struct Code: Sendable, Hashable, Codable {
        /// Its name on the control socket.
        public let name: String

        /// A kind by its name.
        public init(name: String) { self.name = name }

        /// No machine of that name is in the store.
        public static let notFound = Code(name: "notFound")
        /// A machine of that name is there already.
        public static let exists = Code(name: "exists")
        /// The machine runs, and must not.
        public static let running = Code(name: "running")
        /// The machine doesn't run, and must.
        public static let stopped = Code(name: "stopped")
        /// The machine still runs after the time that it was given.
        public static let stillRuns = Code(name: "stillRuns")
        /// The name or value given means nothing.
        public static let badRequest = Code(name: "badRequest")
        /// The machine's files cannot be understood, or are from a newer version.
        public static let damaged = Code(name: "damaged")
        /// The machine's process doesn't answer as it should.
        public static let notAnswering = Code(name: "notAnswering")
        /// The guest, or its agent, refuses.
        public static let guest = Code(name: "guest")
        /// The machine could not be started.
        public static let startFailed = Code(name: "startFailed")
        /// The host's file system refused.
        public static let fileSystem = Code(name: "fileSystem")
    }

    /// The kind of failure.
    public var code: Code
    /// What happened, and what to do about it.
    public var description: String

    /// Makes an error.
    public init(_ code: Code, _ description: String) {
        self.code = code
        self.description = description
    }
}
