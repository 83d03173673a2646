// What changes a shared folder: names, attributes.
internal import HostOS

extension SharedFolder {
    /// Permissions that a guest may give: no set-user-ID, no set-group-ID, for the files are the host's user's.
    static let permissions: UInt32 = 0o1777

    func change(
        _ operation: FUSEOperation, _ request: inout FUSERequest, _ contents: inout Contents
    ) throws -> FUSEReply {
        let folder = request.node
        switch operation {
        case .makeNode:
            let mode = try request.word()
            try request.skip(12)
            let name = try request.text()
            let kept = mode & ~0o7777 | mode & Self.permissions
            try place(folder, &contents).makeNode(name, mode: kept)
            return try finish(name, folder, mode: kept, &contents)
        case .makeFolder:
            let mode = try request.word() & Self.permissions
            try request.skip(4)
            let name = try request.text()
            try place(folder, &contents).makeFolder(name, mode: mode)
            return try finish(name, folder, mode: mode, &contents)
        case .makeSymbolicLink:
            let (name, text) = (try request.text(), try request.text())
            try place(folder, &contents).makeSymbolicLink(name, to: text)
            return try lookUp(name, in: folder, &contents)
        case .link:
            let (old, name) = (try request.long(), try request.text())
            try place(old, &contents).link(in: try place(folder, &contents), as: name)
            return try lookUp(name, in: folder, &contents)
        case .removeFile, .removeFolder:
            try place(folder, &contents).remove(try request.text(), isFolder: operation == .removeFolder)
            return FUSEReply()
        case .rename, .renameWithFlags: return try rename(operation, &request, &contents)
        case .create: return try create(&request, &contents)
        default: throw FUSEError.notImplemented
        }
    }

    /// A new file gets the permissions that the guest asked for, whatever Roost's own mask is.
    private func finish(
        _ name: [UInt8], _ folder: UInt64, mode: UInt32, _ contents: inout Contents
    ) throws -> FUSEReply {
        try? place(folder, &contents).child(name).setMode(mode & Self.permissions)
        return try lookUp(name, in: folder, &contents)
    }

    private func rename(
        _ operation: FUSEOperation, _ request: inout FUSERequest, _ contents: inout Contents
    ) throws -> FUSEReply {
        let target = try request.long()
        var flags: UInt32 = 0
        if operation == .renameWithFlags {
            flags = try request.word()
            try request.skip(4)
        }
        let (name, other) = (try request.text(), try request.text())
        let folder = request.node
        try place(folder, &contents).rename(name, to: try place(target, &contents), other, flags: flags)
        moved(name, folder, to: other, target, &contents)
        if flags == 2 { moved(other, target, to: name, folder, &contents) }
        return FUSEReply()
    }

    private func create(_ request: inout FUSERequest, _ contents: inout Contents) throws -> FUSEReply {
        let (flags, mode) = (Int32(bitPattern: try request.word()), try request.word() & Self.permissions)
        try request.skip(8)
        let (name, folder) = (try request.text(), request.node)
        guard contents.handles.count < mostHandles else { throw FUSEError.tooManyFiles }
        let parent = try place(folder, &contents)
        let isNew = (try? parent.child(name)) == nil
        let kept = Self.openFlags(flags)
        let file = try parent.create(name, kept | flags & Self.exclusive, mode: mode)
        if isNew { try? file.setMode(mode) }
        // Somebody else may have put another file under the name meanwhile: the one that is open counts.
        let opened = try file.fileStatus()
        var reply = try lookUp(name, in: folder, &contents)
        guard let number = contents.numbers[opened.identity] else { throw FUSEError.stale }
        keepOpen(number, kept, .file(OpenFile(file)), &contents, &reply)
        return reply
    }

    /// FATTR_ bits.
    private struct Valid: OptionSet {
        let rawValue: UInt32
        static let mode = Valid(rawValue: 1)
        static let user = Valid(rawValue: 2)
        static let group = Valid(rawValue: 4)
        static let size = Valid(rawValue: 8)
        static let accessed = Valid(rawValue: 16)
        static let modified = Valid(rawValue: 32)
        static let handle = Valid(rawValue: 64)
        static let accessedNow = Valid(rawValue: 128)
        static let modifiedNow = Valid(rawValue: 256)
    }

    func setAttributes(_ request: inout FUSERequest, _ contents: inout Contents) throws -> FUSEReply {
        let valid = Valid(rawValue: try request.word())
        try request.skip(4)
        let (handle, size) = (try request.long(), try request.long())
        try request.skip(8)
        let seconds = (try request.long(), try request.long())
        try request.skip(8)
        let nanoseconds = (try request.word(), try request.word())
        try request.skip(4)
        let mode = try request.word()
        try request.skip(4)
        let (user, group) = (try request.word(), try request.word())
        let place = try place(request.node, &contents)
        if valid.contains(.mode) { try place.setMode(mode & Self.permissions) }
        if !valid.isDisjoint(with: [.user, .group]) {
            try place.setOwner(valid.contains(.user) ? user : .max, valid.contains(.group) ? group : .max)
        }
        if valid.contains(.size) {
            guard size <= UInt64(Int64.max) else { throw FUSEError.invalid }
            if valid.contains(.handle), case .file(let open)? = contents.handles[handle]?.opened {
                try open.file.setByteCount(size)
            } else {
                try place.open(Self.writeOnly).setByteCount(size)
            }
        }
        func time(_ isSet: Valid, _ isNow: Valid, _ seconds: UInt64, _ nanoseconds: UInt32) -> NewTime {
            if valid.contains(isNow) { return (0, .max) }
            return valid.contains(isSet) ? (Int64(bitPattern: seconds), Int(nanoseconds)) : nil
        }
        let times = (
            time(.accessed, .accessedNow, seconds.0, nanoseconds.0),
            time(.modified, .modifiedNow, seconds.1, nanoseconds.1)
        )
        if times.0 != nil || times.1 != nil { try place.setTimes(times.0, times.1) }
        var reply = FUSEReply()
        reply.attributesAnswer(try place.status())
        return reply
    }
}

extension FUSEReply {
    /// Attributes, and how long they hold.
    mutating func attributesAnswer(_ status: FileStatus) {
        long(SharedFolder.validity)
        zeroes(8)
        attributes(status)
    }
}
