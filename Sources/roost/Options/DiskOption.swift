// The value of `--disk`.
internal import ArgumentParser
internal import Machine
internal import Storage

/// FILE[,readonly][,snapshot][,internal=NAME][,bus=virtio|scsi][,cache=MODE][,on-error=report|pause]
/// [,aio=threads|io_uring][,queues=NUMBER][,format=FORMAT][,iops=NUMBER][,bps=SIZE].
///
/// What follows the file is taken from the end as far as it has these names, so that a file's name may have commas.
struct DiskOption {
    private static let names: Set = [
        "readonly", "ro", "snapshot", "internal", "bus", "cache", "on-error", "aio", "queues", "format", "iops", "bps",
    ]
    var value: DiskConfiguration
    /// The bus, if one was named.
    private(set) var bus: DiskBus?

    /// Reads an argument; throws what is wrong with it.
    init(parsing argument: String) throws {
        var words = OptionWords(argument, onlyNamed: Self.names)
        guard !words.first.isEmpty else { throw ValidationError("no file") }
        var options = DiskOptions()
        let (isReadOnly, isReadOnlyInShort) = (try words.flag("readonly"), try words.flag("ro"))
        options.snapshot = try words.value("internal")
        options.isReadOnly = isReadOnly || isReadOnlyInShort || options.snapshot != nil
        options.isTemporary = try words.flag("snapshot")
        options.cache = try words.choice("cache", CacheMode.self) ?? options.cache
        let formats = "there are \(OptionWords.list(DiskFormat.allCases.map(\.rawValue)))"
        options.format = try words.value("format", formats) { DiskFormat(name: $0) }
        bus = try words.choice("bus", DiskBus.self)
        value = DiskConfiguration(path: words.first, options: options, bus: bus ?? .virtio)
        value.errorPolicy = try words.choice("on-error", DiskErrorPolicy.self) ?? .report
        value.transfers = try words.choice("aio", DiskTransfers.self)
        value.queues = try words.number("queues", 1...32).map { Int($0) }
        value.limits = DiskLimits()
        value.limits.operations = try words.number("iops", 1...UInt64.max) ?? 0
        value.limits.bytes = try words.size("bps") ?? 0
        try words.finish()
    }
}
