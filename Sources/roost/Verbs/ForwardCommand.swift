// `roost forward`: ports of the host that lead to a machine's.
public import ArgumentParser
internal import Machine
internal import Machines

/// `roost forward`.
struct ForwardCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "forward", abstract: "List, add and remove ports of the host that lead to a machine's.",
        subcommands: [List.self, Add.self, Remove.self])

    /// Changes the forwards of a machine's first user-mode network.
    static func change(_ stored: StoredMachine, _ body: (inout [ForwardConfiguration]) throws -> Void) throws {
        try stored.change { machine in
            for index in machine.networks.indices {
                guard case .user(var forwards) = machine.networks[index].kind else { continue }
                try body(&forwards)
                machine.networks[index].kind = .user(forwards: forwards)
                return
            }
            throw MachinesError(.badRequest, "machine '\(stored.name)' has no user-mode network")
        }
    }

    /// `roost forward list`.
    struct List: ParsableCommand {
        static let configuration = CommandConfiguration(commandName: "list", abstract: "List forwarded ports.")

        @OptionGroup var machine: MachineArgument
        @OptionGroup var list: ListOptions

        func run() throws {
            var listing = Listing(columns: ["forward", "protocol", "hostPort", "guestPort"])
            for network in try machine.find().manifest().machine.networks {
                guard case .user(let forwards) = network.kind else { continue }
                for forward in forwards {
                    listing.rows.append([
                        .text(forward.description), .text(forward.isUDP ? "udp" : "tcp"),
                        .number(UInt64(forward.hostPort)), .number(UInt64(forward.guestPort)),
                    ])
                }
            }
            list.show(listing, ifEmpty: "No ports are forwarded.")
        }
    }

    /// `roost forward add`.
    struct Add: ParsableCommand {
        static let configuration = CommandConfiguration(commandName: "add", abstract: "Forward one more port.")

        @OptionGroup var machine: MachineArgument

        @Argument(help: "tcp:HOSTPORT:GUESTPORT or udp:HOSTPORT:GUESTPORT.")
        var forward: ForwardConfiguration

        func run() throws {
            try ForwardCommand.change(try machine.find()) { forwards in
                if forwards.contains(where: { $0.isUDP == forward.isUDP && $0.hostPort == forward.hostPort }) {
                    throw MachinesError(.exists, "host port \(forward.hostPort) is forwarded already")
                }
                forwards.append(forward)
            }
        }
    }

    /// `roost forward remove`.
    struct Remove: ParsableCommand {
        static let configuration = CommandConfiguration(commandName: "remove", abstract: "Forward a port no more.")

        @OptionGroup var machine: MachineArgument

        @Argument(help: "tcp:HOSTPORT:GUESTPORT or udp:HOSTPORT:GUESTPORT.")
        var forward: ForwardConfiguration

        func run() throws {
            try ForwardCommand.change(try machine.find()) { forwards in
                guard let index = forwards.firstIndex(of: forward) else {
                    throw MachinesError(.notFound, "\(forward) is not forwarded")
                }
                forwards.remove(at: index)
            }
        }
    }
}

extension ForwardConfiguration: ExpressibleByArgument {
    /// Reads an argument.
    init?(argument: String) { self.init(argument) }
}
