// What a guest holds of a folder that its host shares, as plain data.

/// The files and open files of a shared folder that a guest knows by number.
public struct SharedFolderState: Codable, Sendable, Equatable {
    /// A file that the guest has looked up.
    public struct Node: Codable, Sendable, Equatable {
        /// Its number, its folder's, and how often it was looked up.
        public var id, parent, lookups: UInt64
        /// Its name there.
        public var name: [UInt8]

        /// Makes one from its parts.
        public init(id: UInt64, parent: UInt64, lookups: UInt64, name: [UInt8]) {
            (self.id, self.parent, self.lookups, self.name) = (id, parent, lookups, name)
        }
    }

    /// A file that the guest has open.
    public struct Handle: Codable, Sendable, Equatable {
        /// Its number, and its file's.
        public var id, node: UInt64
        /// How it was opened.
        public var flags: Int32
        /// Whether it is a folder.
        public var isFolder: Bool

        /// Makes one from its parts.
        public init(id: UInt64, node: UInt64, flags: Int32, isFolder: Bool) {
            (self.id, self.node, self.flags, self.isFolder) = (id, node, flags, isFolder)
        }
    }

    /// What is known of one of several folders behind one file system.
    public struct Part: Codable, Sendable, Equatable {
        /// The folder's number, and where it is on the host and in the guest.
        public var id: UInt64, folder, path: String
        /// What is known of it.
        public var state: SharedFolderState

        /// Makes one from its parts.
        public init(id: UInt64, folder: String, path: String, state: SharedFolderState) {
            (self.id, self.folder, self.path, self.state) = (id, folder, path, state)
        }
    }

    /// Version of this layout.
    public var version = 1
    /// All files, and all open files.
    public var nodes: [Node] = []
    /// Open files.
    public var handles: [Handle] = []
    /// Where there are several folders: each.
    public var parts: [Part]?
    /// The number of the next file, or of the next of several folders.
    public var nextNode: UInt64 = 2
    /// The number of the next open file.
    public var nextHandle: UInt64 = 1

    /// Nothing looked up.
    public init() {}
}
