// `roost forward`: ports of the host that lead to a machine's.
public import ArgumentParser
internal import Machine
internal import Machines

/// `roost forward`.
struct ForwardCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "forward", abstract: "List, add and remove ports of the host that lead to a machine's.",
        subcommands: [List.self, Add.self, Remove.self])

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
            try machine.find().addForward(forward)
        }
    }

    /// `roost forward remove`.
    struct Remove: ParsableCommand {
        static let configuration = CommandConfiguration(commandName: "remove", abstract: "Forward a port no more.")

        @OptionGroup var machine: MachineArgument

        @Argument(help: "tcp:HOSTPORT:GUESTPORT or udp:HOSTPORT:GUESTPORT.")
        var forward: ForwardConfiguration

        func run() throws {
            try machine.find().removeForward(forward)
        }
    }
}

extension ForwardConfiguration: ExpressibleByArgument {
    /// Reads an argument.
    init?(argument: String) { self.init(argument) }
}
