// Errors of disk images.

/// A disk image that can't be used, and why.
public struct StorageError: Error, Sendable, Equatable, CustomStringConvertible {
    /// What kind of error it is.
    public struct Code: Sendable, Equatable, Hashable {
        private let name: String
        /// There is no such file.
        public static let missing = Code(name: "missing")
        /// It is a directory.
        public static let directory = Code(name: "directory")
        /// It is neither a file nor a block device.
        public static let notADisk = Code(name: "notADisk")
        /// It may not be read.
        public static let notReadable = Code(name: "notReadable")
        /// It may not be written.
        public static let notWritable = Code(name: "notWritable")
        /// Another process uses it.
        public static let inUse = Code(name: "inUse")
        /// It holds less than one sector.
        public static let empty = Code(name: "empty")
        /// An access beyond its end: the request is wrong, or the file has shrunk.
        public static let outOfRange = Code(name: "outOfRange")
        /// The image contradicts itself or its format.
        public static let damaged = Code(name: "damaged")
        /// The format, or something in the image, that Roost doesn't know.
        public static let unsupported = Code(name: "unsupported")
        /// A file is there already.
        public static let exists = Code(name: "exists")
        /// What was asked for makes no sense.
        public static let badRequest = Code(name: "badRequest")
        /// The host failed to do it.
        public static let host = Code(name: "host")
    }

    /// The kind.
    public var code: Code
    /// One line for a person.
    public var description: String

    /// Makes an error from its parts.
    public init(_ code: Code, _ description: String) {
        self.code = code
        self.description = description
    }
}
