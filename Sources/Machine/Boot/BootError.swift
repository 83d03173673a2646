// What can be wrong with what a user wants to boot.

/// A kernel or initrd that can't be booted, and why.
public struct BootError: Error, CustomStringConvertible, Equatable, Sendable {
    /// The kind of failure.
    public struct Code: Hashable, Sendable {
        private let name: String
        private init(_ name: String) { self.name = name }

        /// A file that can't be opened or read.
        public static let unreadable = Code("unreadable")
        /// A file that ends before what its headers promise.
        public static let truncated = Code("truncated")
        /// A kernel for another kind of processor.
        public static let otherArchitecture = Code("otherArchitecture")
        /// Nothing that any of the boot protocols knows.
        public static let notAKernel = Code("notAKernel")
        /// A kernel whose headers contradict themselves.
        public static let malformed = Code("malformed")
        /// A kernel that the guest's memory can't hold.
        public static let tooLarge = Code("tooLarge")
        /// An initrd or module that the guest's memory can't hold beside the kernel.
        public static let initrdTooLarge = Code("initrdTooLarge")
        /// A command line longer than the kernel takes.
        public static let commandLineTooLong = Code("commandLineTooLong")
    }

    /// The kind of failure.
    public var code: Code
    /// What is wrong, in one line, with the file's name.
    public var description: String

    /// Makes an error from its parts.
    public init(_ code: Code, _ description: String) {
        self.code = code
        self.description = description
    }
}
