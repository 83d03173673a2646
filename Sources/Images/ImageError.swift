// What can go wrong with guest images, in words for the person at the terminal.

/// Why an image could not be found, built or read.
public struct ImageError: Error, CustomStringConvertible, Sendable, Equatable {
    /// The kind of failure, for those who act on it.
    public struct Code: Sendable, Equatable {
        private let name: String
        private init(_ name: String) { self.name = name }

        /// No image of that name is in the store.
        public static let notFound = Code("notFound")
        /// The image's manifest cannot be understood, or one of its files is missing.
        public static let damaged = Code("damaged")
        /// The name or option given means nothing.
        public static let badRequest = Code("badRequest")
        /// A program or package the host needs is missing.
        public static let missingTool = Code("missingTool")
        /// A program that was run failed.
        public static let toolFailed = Code("toolFailed")
        /// The host's file system refused.
        public static let fileSystem = Code("fileSystem")
        /// The person interrupted the work.
        public static let interrupted = Code("interrupted")
    }

    /// The kind of failure.
    public var code: Code
    /// One line: what happened, and what to do about it.
    public var message: String

    /// Makes an error.
    public init(_ code: Code, _ message: String) {
        self.code = code
        self.message = message
    }

    /// The message.
    public var description: String { message }
}
