// The value of `--disk`.
internal import ArgumentParser
internal import Machine
internal import Storage

/// FILE[,readonly][,snapshot][,internal=NAME][,bus=virtio|scsi][,cache=MODE][,on-error=report|pause]
/// [,aio=threads|io_uring][,queues=NUMBER][,format=FORMAT][,iops=NUMBER][,bps=SIZE].
///
/// What follows the file is taken from the end as far as it makes sense, so that a file's name may have commas.
struct DiskOption: ExpressibleByArgument {
    var value: DiskConfiguration

    init?(argument: String) {
        var path = argument[...]
        var options = DiskOptions()
        var bus = DiskBus.virtio
        var errorPolicy = DiskErrorPolicy.report
        var transfers: DiskTransfers?
        var queues: Int?
        var limits = DiskLimits()
        while let comma = path.lastIndex(of: ",") {
            let word = path[path.index(after: comma)...]
            if word == "readonly" || word == "ro" {
                options.isReadOnly = true
            } else if word == "snapshot" {
                options.isTemporary = true
            } else if word.hasPrefix("internal=") {
                options.snapshot = String(word.dropFirst(9))
                options.isReadOnly = true
            } else if word.hasPrefix("bus=") {
                guard let named = DiskBus(rawValue: String(word.dropFirst(4))) else { return nil }
                bus = named
            } else if word.hasPrefix("cache=") {
                guard let mode = CacheMode(rawValue: String(word.dropFirst(6))) else { return nil }
                options.cache = mode
            } else if word.hasPrefix("on-error=") {
                guard let policy = DiskErrorPolicy(rawValue: String(word.dropFirst(9))) else { return nil }
                errorPolicy = policy
            } else if word.hasPrefix("aio=") {
                guard let kind = DiskTransfers(rawValue: String(word.dropFirst(4))) else { return nil }
                transfers = kind
            } else if word.hasPrefix("queues=") {
                guard let count = Int(word.dropFirst(7)), 1...32 ~= count else { return nil }
                queues = count
            } else if word.hasPrefix("format=") {
                guard let format = DiskFormat(name: String(word.dropFirst(7))) else { return nil }
                options.format = format
            } else if word.hasPrefix("iops=") {
                guard let number = UInt64(word.dropFirst(5)), number > 0 else { return nil }
                limits.operations = number
            } else if word.hasPrefix("bps=") {
                guard let size = MemorySize(argument: String(word.dropFirst(4))), size.bytes > 0 else { return nil }
                limits.bytes = size.bytes
            } else {
                break
            }
            path = path[..<comma]
        }
        if path.isEmpty { return nil }
        value = DiskConfiguration(path: String(path), options: options, bus: bus)
        value.errorPolicy = errorPolicy
        value.transfers = transfers
        value.queues = queues
        value.limits = limits
    }
}
