// Open files and folders of a guest's.
internal import HostOS

extension SharedFolder {
    // <fcntl.h>
    static let writeOnly: Int32 = 1
    static let exclusive: Int32 = 0o200
    static let truncate: Int32 = 0o1000
    private static let directory: Int32 = 0o200000
    private static let append: UInt32 = 0o2000
    /// Access mode, O_TRUNC, O_DSYNC, O_SYNC. What is appended says so itself: pages of a mapping are written back by the
    /// same handle, to where they belong.
    private static let allowed: Int32 = 0o3 | 0o1000 | 0o10000 | 0o4010000

    /// What is left of a guest's flags.
    static func openFlags(_ flags: Int32) -> Int32 { flags & allowed }

    /// Opens a file or folder.
    func open(_ number: UInt64, _ flags: Int32, isFolder: Bool, _ contents: inout Contents) throws -> Opened {
        let place = try place(number, &contents)
        guard isFolder else {
            guard try place.status().isRegular else { throw FUSEError.invalid }
            return .file(OpenFile(try place.open(Self.openFlags(flags))))
        }
        return .folder(try FolderReader(try place.open(Self.directory)))
    }

    func open(_ request: inout FUSERequest, _ contents: inout Contents, isFolder: Bool) throws -> FUSEReply {
        let flags = Int32(bitPattern: try request.word())
        guard contents.handles.count < mostHandles else { throw FUSEError.tooManyFiles }
        if isReadOnly, flags & 3 != 0 || flags & Self.truncate != 0 { throw FUSEError.readOnly }
        let opened = try open(request.node, flags, isFolder: isFolder, &contents)
        var reply = FUSEReply()
        keepOpen(request.node, Self.openFlags(flags), opened, &contents, &reply)
        return reply
    }

    /// Gives an open file a number. Truncated is once: not when a restored machine opens it anew.
    func keepOpen(
        _ node: UInt64, _ flags: Int32, _ opened: Opened, _ contents: inout Contents, _ reply: inout FUSEReply
    ) {
        let handle = contents.nextHandle
        contents.nextHandle &+= 1
        keep(Handle(node: node, flags: flags & ~Self.truncate, opened: opened), handle, &contents)
        reply.long(handle)
        reply.long(0)
    }

    /// Keeps an open file under a number, and its place with it.
    func keep(_ handle: Handle, _ number: UInt64, _ contents: inout Contents) {
        contents.handles[number] = handle
        if contents.held[handle.node] != nil {
            contents.held[handle.node]?.handles += 1
        } else if let place = try? place(handle.node, &contents) {
            contents.held[handle.node] = HeldPlace(place: place)
        }
    }

    private func release(_ number: UInt64, _ contents: inout Contents) {
        guard let node = contents.handles.removeValue(forKey: number)?.node, let held = contents.held[node] else {
            return
        }
        if held.handles > 1 {
            contents.held[node]?.handles -= 1
        } else {
            contents.held[node] = nil
        }
    }

    /// What is done with an open file.
    func use(
        _ operation: FUSEOperation, _ request: inout FUSERequest, _ contents: inout Contents, room: Int
    ) throws -> FUSEReply {
        let number = try request.long()
        guard let opened = contents.handles[number]?.opened else { throw FUSEError.badHandle }
        switch (operation, opened) {
        case (.release, _), (.releaseFolder, _): release(number, &contents)
        case (.flush, _): break
        case (.synchronize, .file(let open)): try open.file.synchronize(dataOnly: try request.word() & 1 != 0)
        case (.synchronizeFolder, _), (.synchronize, _): break
        case (.readFolder, .folder(let reader)): return try read(reader, &request, room: room)
        case (_, .file(let open)): return try use(operation, open, &request, room: room)
        default: throw FUSEError.badHandle
        }
        return FUSEReply()
    }

    private func use(
        _ operation: FUSEOperation, _ open: OpenFile, _ request: inout FUSERequest, room: Int
    ) throws -> FUSEReply {
        let offset = try request.long()
        guard offset <= UInt64(Int64.max) else { throw FUSEError.invalid }
        var reply = FUSEReply()
        switch operation {
        case .read:
            let count = min(Int(try request.word()), room, Self.mostBytes)
            guard count > 0 else { return reply }
            reply.data(try open.file.read(at: offset, count: count)[...])
        case .write:
            let (count, kind) = (Int(try request.word()), try request.word())
            try request.skip(8)
            let flags = try request.word()
            try request.skip(4)
            guard count <= Self.mostBytes else { throw FUSEError.invalid }
            let data = try request.data(count)
            // FUSE_WRITE_CACHE (bit 0): from the guest's page cache.
            if kind & 1 == 0, flags & Self.append != 0 {
                try open.file.append(data)
            } else {
                try open.file.write(data, at: offset)
            }
            reply.word(UInt32(count))
            reply.word(0)
        case .changeRoom:
            let (length, mode) = (try request.long(), try request.word())
            // KEEP_SIZE, PUNCH_HOLE, ZERO_RANGE.
            guard mode & ~0x13 == 0 else { throw FUSEError.notSupported }
            try open.file.changeRoom(Int32(mode), at: offset, length: length)
        case .seek: reply.long(try open.file.seek(offset, whence: Int32(truncatingIfNeeded: try request.word())))
        default: throw FUSEError.badHandle
        }
        return reply
    }

    /// Entries of a folder, as many as fit.
    private func read(_ reader: FolderReader, _ request: inout FUSERequest, room: Int) throws -> FUSEReply {
        var offset = try request.long()
        let size = min(Int(try request.word()), room, Self.mostBytes)
        var reply = FUSEReply()
        while let entry = reader.entry(at: offset) {
            // Nothing is said of the folder above.
            let inode = entry.name == [0x2E, 0x2E] ? 1 : entry.inode
            guard reply.folderEntry(entry.name, inode: inode, type: entry.type, next: entry.next, room: size),
                entry.next != offset
            else { break }
            offset = entry.next
        }
        return reply
    }

    func getAttributes(_ request: inout FUSERequest, _ contents: inout Contents) throws -> FUSEReply {
        let flags = try request.word()
        try request.skip(4)
        var reply = FUSEReply()
        if flags & 1 != 0, case .file(let open)? = contents.handles[try request.long()]?.opened {
            reply.attributesAnswer(try open.file.fileStatus())
        } else {
            reply.attributesAnswer(try place(request.node, &contents).status())
        }
        return reply
    }

    func fileSystemStatus() throws -> FUSEReply {
        let status = try top.open(Self.directory).fileSystemStatus()
        var reply = FUSEReply()
        for value in [status.blocks, status.freeBlocks, status.availableBlocks, status.files, status.freeFiles] {
            reply.long(value)
        }
        for value in [status.blockSize, status.longestName, status.fragmentSize, 0] { reply.word(value) }
        reply.zeroes(24)
        return reply
    }
}
