// Configurations as JSON, for manifests: what a machine is, not how it is looked at. A key that is missing is the default.
internal import Storage

/// Names that this file's keyed containers use.
private struct FieldName: CodingKey {
    let stringValue: String
    var intValue: Int? { nil }
    init(stringValue: String) { self.stringValue = stringValue }
    init?(intValue: Int) { nil }
    init(_ name: String) { stringValue = name }
}

extension KeyedDecodingContainer where K == FieldName {
    fileprivate func take<Value: Decodable>(_ name: String, into value: inout Value) throws {
        if let found = try decodeIfPresent(Value.self, forKey: FieldName(name)) { value = found }
    }

    /// A value by its name in an enumeration.
    fileprivate func take<Value: RawRepresentable<String>>(_ name: String, named value: inout Value) throws {
        guard let word = try decodeIfPresent(String.self, forKey: FieldName(name)) else { return }
        guard let found = Value(rawValue: word) else { throw unknown(name, word) }
        value = found
    }

    fileprivate func unknown(_ name: String, _ word: String) -> DecodingError {
        DecodingError.dataCorruptedError(
            forKey: FieldName(name), in: self, debugDescription: "'\(word)' is no \(name) that this version knows")
    }
}

extension KeyedEncodingContainer where K == FieldName {
    fileprivate mutating func put<Value: Encodable & Equatable>(
        _ name: String, _ value: Value, unless usual: Value? = nil
    ) throws {
        if value != usual { try encode(value, forKey: FieldName(name)) }
    }

    fileprivate mutating func put<Value: Encodable>(_ name: String, ifAny value: Value?) throws {
        try encodeIfPresent(value, forKey: FieldName(name))
    }
}

extension MachineConfiguration: Codable {
    /// Reads what `encode` has written.
    public init(from decoder: any Decoder) throws {
        let container = try decoder.container(keyedBy: FieldName.self)
        self.init(boot: try container.decode(BootSource.self, forKey: FieldName("boot")))
        try container.take("memory", into: &memory)
        maximumMemory = try container.decodeIfPresent(UInt64.self, forKey: FieldName("maximumMemory"))
        wantedMemory = try container.decodeIfPresent(UInt64.self, forKey: FieldName("wantedMemory"))
        try container.take("processors", into: &processors)
        maximumProcessors = try container.decodeIfPresent(Int.self, forKey: FieldName("maximumProcessors"))
        cpuModel = try container.decodeIfPresent(String.self, forKey: FieldName("cpuModel"))
        try container.take("engine", named: &engine)
        try container.take("userMode", named: &userMode)
        try container.take("clock", named: &clock)
        try container.take("codeCache", into: &codeCache)
        try container.take("balloon", into: &balloon)
        try container.take("disks", into: &disks)
        try container.take("drives", into: &drives)
        networks = []
        try container.take("networks", into: &networks)
        try container.take("folders", into: &folders)
        try container.take("onPanic", named: &onPanic)
        watchdog = try container.decodeIfPresent(WatchdogAction.self, forKey: FieldName("watchdog"))
        try container.take("hugePages", into: &usesHugePages)
        mounts = try container.decodeIfPresent([MountConfiguration].self, forKey: FieldName("mounts"))
        sockets = try container.decodeIfPresent(VsockConfiguration.self, forKey: FieldName("sockets"))
        debugExitPort = try container.decodeIfPresent(UInt16.self, forKey: FieldName("debugExitPort"))
        try container.take("testDevice", into: &hasTestDevice)
        try container.take("rebootsOnReset", into: &rebootsOnReset)
    }

    /// Writes what the machine is.
    public func encode(to encoder: any Encoder) throws {
        let usual = MachineConfiguration(boot: boot)
        var container = encoder.container(keyedBy: FieldName.self)
        try container.put("boot", boot)
        try container.put("memory", memory)
        try container.put("maximumMemory", ifAny: maximumMemory)
        try container.put("wantedMemory", ifAny: wantedMemory)
        try container.put("processors", processors)
        try container.put("maximumProcessors", ifAny: maximumProcessors)
        try container.put("cpuModel", ifAny: cpuModel)
        try container.put("engine", engine.rawValue)
        try container.put("userMode", userMode.rawValue, unless: usual.userMode.rawValue)
        try container.put("clock", clock.rawValue, unless: usual.clock.rawValue)
        try container.put("codeCache", codeCache, unless: usual.codeCache)
        try container.put("balloon", balloon, unless: 0)
        try container.put("disks", disks)
        try container.put("drives", drives, unless: [])
        try container.put("networks", networks)
        try container.put("folders", folders, unless: [])
        try container.put("onPanic", onPanic.rawValue, unless: usual.onPanic.rawValue)
        try container.put("watchdog", ifAny: watchdog)
        try container.put("hugePages", usesHugePages, unless: false)
        try container.put("mounts", ifAny: mounts)
        try container.put("sockets", ifAny: sockets)
        try container.put("debugExitPort", ifAny: debugExitPort)
        try container.put("testDevice", hasTestDevice, unless: false)
        try container.put("rebootsOnReset", rebootsOnReset, unless: true)
    }
}

extension DiskConfiguration: Codable {
    /// Reads what `encode` has written.
    public init(from decoder: any Decoder) throws {
        let container = try decoder.container(keyedBy: FieldName.self)
        self.init(path: try container.decode(String.self, forKey: FieldName("path")))
        try container.take("readOnly", into: &options.isReadOnly)
        try container.take("temporary", into: &options.isTemporary)
        options.format = try container.decodeIfPresent(DiskFormat.self, forKey: FieldName("format"))
        options.snapshot = try container.decodeIfPresent(String.self, forKey: FieldName("internalSnapshot"))
        try container.take("operationsPerSecond", into: &limits.operations)
        try container.take("bytesPerSecond", into: &limits.bytes)
        try container.take("bus", named: &bus)
        try container.take("cache", named: &options.cache)
        try container.take("onError", named: &errorPolicy)
        transfers = try container.decodeIfPresent(DiskTransfers.self, forKey: FieldName("aio"))
        queues = try container.decodeIfPresent(Int.self, forKey: FieldName("queues"))
        if let count = queues, !(1...32 ~= count) { throw container.unknown("queues", "\(count)") }
    }

    /// Writes the path, and what isn't usual.
    public func encode(to encoder: any Encoder) throws {
        var container = encoder.container(keyedBy: FieldName.self)
        try container.put("path", path)
        try container.put("readOnly", options.isReadOnly, unless: false)
        try container.put("temporary", options.isTemporary, unless: false)
        try container.put("format", ifAny: options.format)
        try container.put("internalSnapshot", ifAny: options.snapshot)
        try container.put("operationsPerSecond", limits.operations, unless: 0)
        try container.put("bytesPerSecond", limits.bytes, unless: 0)
        try container.put("bus", bus.rawValue, unless: DiskBus.virtio.rawValue)
        try container.put("cache", options.cache.rawValue, unless: CacheMode.writeback.rawValue)
        try container.put("onError", errorPolicy.rawValue, unless: DiskErrorPolicy.report.rawValue)
        try container.put("aio", ifAny: transfers)
        try container.put("queues", ifAny: queues)
    }
}

extension ForwardConfiguration: Codable, CustomStringConvertible {
    /// Reads `tcp:HOSTPORT:GUESTPORT` or `udp:…`.
    public init?(_ text: String) {
        let fields = text.split(separator: ":", omittingEmptySubsequences: false)
        guard fields.count == 3, fields[0] == "tcp" || fields[0] == "udp", let host = UInt16(fields[1]), host > 0,
            let guest = UInt16(fields[2]), guest > 0
        else { return nil }
        self.init(isUDP: fields[0] == "udp", hostPort: host, guestPort: guest)
    }

    /// `tcp:HOSTPORT:GUESTPORT`.
    public var description: String { "\(isUDP ? "udp" : "tcp"):\(hostPort):\(guestPort)" }

    /// Reads the text.
    public init(from decoder: any Decoder) throws {
        let container = try decoder.singleValueContainer()
        let text = try container.decode(String.self)
        guard let forward = Self(text) else {
            throw DecodingError.dataCorruptedError(in: container, debugDescription: "'\(text)' is no forwarded port")
        }
        self = forward
    }

    /// Writes the text.
    public func encode(to encoder: any Encoder) throws {
        var container = encoder.singleValueContainer()
        try container.encode(description)
    }
}

extension NetworkConfiguration: Codable {
    /// A MAC address in its usual form, six hexadecimal bytes of one card: no group's address, not zero.
    public static func macAddress(_ text: String) -> [UInt8]? {
        let parts = text.split(separator: ":", omittingEmptySubsequences: false)
        let bytes = parts.compactMap { $0.count == 2 && $0.allSatisfy(\.isHexDigit) ? UInt8($0, radix: 16) : nil }
        guard parts.count == 6, bytes.count == 6, bytes[0] & 1 == 0, bytes.contains(where: { $0 != 0 }) else {
            return nil
        }
        return bytes
    }

    /// The MAC address in its usual form.
    public var macAddressText: String? {
        macAddress?.map { ($0 < 16 ? "0" : "") + String($0, radix: 16) }.joined(separator: ":")
    }

    /// Reads what `encode` has written.
    public init(from decoder: any Decoder) throws {
        let container = try decoder.container(keyedBy: FieldName.self)
        let name = try container.decode(String.self, forKey: FieldName("kind"))
        switch name {
        case "user", "passt":
            var forwards: [ForwardConfiguration] = []
            try container.take("forwards", into: &forwards)
            self.init(name == "user" ? .user(forwards: forwards) : .passt(forwards: forwards))
        case "tap":
            var queues = 1
            try container.take("queues", into: &queues)
            guard 1...NetworkKind.mostQueues ~= queues else { throw container.unknown("queues", "\(queues)") }
            self.init(
                .tap(
                    interface: try container.decodeIfPresent(String.self, forKey: FieldName("interface")),
                    bridge: try container.decodeIfPresent(String.self, forKey: FieldName("bridge")), queues: queues))
        case "switch": self.init(.virtualSwitch(name: try container.decode(String.self, forKey: FieldName("switch"))))
        case "vhost-user":
            var listens = false
            try container.take("server", into: &listens)
            let path = try container.decode(String.self, forKey: FieldName("socket"))
            self.init(.vhostUser(path: path, listens: listens))
        default: throw container.unknown("kind", name)
        }
        if let text = try container.decodeIfPresent(String.self, forKey: FieldName("macAddress")) {
            guard let address = Self.macAddress(text) else { throw container.unknown("macAddress", text) }
            macAddress = address
        }
        capture = try container.decodeIfPresent(String.self, forKey: FieldName("capture"))
        if let rate = try container.decodeIfPresent(UInt64.self, forKey: FieldName("bitsPerSecond")), rate > 0 {
            limit = NetworkLimit(
                rate: rate, burst: try container.decodeIfPresent(UInt64.self, forKey: FieldName("burst")))
        }
    }

    /// Writes the kind, and what belongs to it.
    public func encode(to encoder: any Encoder) throws {
        var container = encoder.container(keyedBy: FieldName.self)
        switch kind {
        case .user(let forwards):
            try container.put("kind", "user")
            try container.put("forwards", forwards, unless: [])
        case .passt(let forwards):
            try container.put("kind", "passt")
            try container.put("forwards", forwards, unless: [])
        case .tap(let interface, let bridge, let queues):
            try container.put("kind", "tap")
            try container.put("interface", ifAny: interface)
            try container.put("bridge", ifAny: bridge)
            try container.put("queues", queues, unless: 1)
        case .virtualSwitch(let name):
            try container.put("kind", "switch")
            try container.put("switch", name)
        case .vhostUser(let path, let listens):
            try container.put("kind", "vhost-user")
            try container.put("socket", path)
            try container.put("server", listens, unless: false)
        }
        try container.put("macAddress", ifAny: macAddressText)
        try container.put("capture", ifAny: capture)
        try container.put("bitsPerSecond", ifAny: limit?.rate)
        try container.put("burst", ifAny: limit?.burst)
    }
}
