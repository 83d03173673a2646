// What `roost` prints for programs, read by Python's own parsers; completions by the shell; manual pages by man.
import Foundation
import HostOS
import Testing

@Suite("Lists, completions and manual pages", .enabled("needs the built command") { TerminalSession.roost != nil })
struct ListingTests {
    private func run(_ program: String, _ arguments: [String], _ environment: [String: String] = [:]) throws -> String {
        var lines: [String] = []
        let ending = try ChildProcess.run(
            program, arguments, environment: ProcessInfo.processInfo.environment.merging(environment) { $1 },
            line: { lines.append($0) }, proceed: { true })
        #expect(ending == .exited(0), "\(program): \(lines)")
        return lines.joined(separator: "\n")
    }

    @Test(
        "JSON, YAML and CSV say the same of the same machines",
        .enabled("needs python3-yaml") {
            FileDescriptor.exists("/usr/lib/python3/dist-packages/yaml")
        })
    func formats() throws {
        let home = try MachineHome()
        let kernel = try home.kernel(KeptMachineTests.obedient)
        try home.start("first", kernel)
        try home.start("second", kernel, "--cpus", "2")
        for format in ["json", "yaml", "csv"] {
            try Data(try home.succeed("list", "--format", format).utf8)
                .write(to: URL(fileURLWithPath: home.folder + "/list." + format))
        }
        let program = """
            import csv, json, yaml
            a = json.load(open('list.json')); b = yaml.safe_load(open('list.yaml'))
            c = list(csv.DictReader(open('list.csv', newline='')))
            assert a == b, (a, b)
            assert [{k: '' if v is None else str(v) for k, v in r.items()} for r in a] == c, (a, c)
            print([(r['name'], r['status'], r['processors'], r['memory']) for r in a])
            """
        let path = home.folder + "/check.py"
        try Data("import os; os.chdir('\(home.folder)')\n\(program)\n".utf8).write(to: URL(fileURLWithPath: path))
        #expect(
            try run("/usr/bin/python3", [path])
                == "[('first', 'running', 1, 33554432), ('second', 'running', 2, 33554432)]")
        let table = try home.succeed("list")
        #expect(table.hasPrefix("NAME    STATUS   IMAGE  PROCESSORS  MEMORY"), "\(table)")
        #expect(try home.succeed("list", "-q", "--running") == "first\nsecond\n")
        #expect(try home.succeed("top", "--once", "--interval", "0.1", "--format", "csv").hasPrefix("name,cpu,memory"))
    }

    @Test("bash completes verbs and names of machines")
    func completion() throws {
        let home = try MachineHome()
        try home.start("heron", try home.kernel(KeptMachineTests.obedient))
        let roost = try #require(TerminalSession.roost)
        let script = home.folder + "/complete.bash"
        try Data(try home.succeed("--generate-completion-script", "bash").utf8).write(to: URL(fileURLWithPath: script))
        func complete(_ words: String...) throws -> String {
            let list = (["roost"] + words).map { "'\($0)'" }.joined(separator: " ")
            let program = """
                PATH='\((roost as NSString).deletingLastPathComponent)':$PATH; source '\(script)'
                COMP_WORDS=(\(list)); COMP_CWORD=\(words.count); COMP_LINE="${COMP_WORDS[*]}"; COMP_POINT=${#COMP_LINE}
                $(complete -p roost | sed 's/.*-F \\([^ ]*\\) .*/\\1/') roost '\(words.last ?? "")' ''
                echo "${COMPREPLY[@]}"
                """
            return try run("/bin/bash", ["-c", program], home.environment)
        }
        #expect(try complete("sto").contains("stop"))
        #expect(try complete("stop", "her").contains("heron"))
    }

    @Test("man reads the page of every verb without a complaint")
    func manual() throws {
        let home = try MachineHome()
        try home.succeed("manual", home.folder + "/man")
        let pages = try FileManager.default.contentsOfDirectory(atPath: home.folder + "/man")
        for verb in ["run", "list", "stop", "console", "forward-add", "image-build"] {
            #expect(pages.contains("roost-\(verb).1"), "\(pages)")
        }
        for page in pages {
            let text = try run(
                "/usr/bin/groff", ["-Kutf8", "-man", "-Tutf8", "-ww", "-z", home.folder + "/man/" + page])
            #expect(text.isEmpty, "\(page): \(text)")
        }
    }
}
