// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A real gdb, connected to the debugger's socket of a jailed machine.

mod common;

use std::fs;
use std::io::{PipeReader, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::Duration;

use common::harness::{Needs, Tests};
use common::process::{DEADLINE, Vmm};
use common::{ENTRY, code};
use coracle_vmm::role::Event;
use coracle_vmm::{Activity, Exit};
use rustix::process::{Pid, Resource, Rlimit, Signal, getrlimit, kill_process, prlimit};

fn main() {
    Tests::new()
        .tests(
            Needs::KvmRootAndGdb,
            named![
                guest_waits_for_its_debugger_and_goes_on_without_it,
                registers_and_memory_are_read_and_written,
                step_is_one_instruction,
                hardware_breakpoint_stops_the_guest,
                vcpus_are_threads,
                running_guest_is_interrupted,
                guest_that_ends_is_a_program_that_exits,
                kill_ends_the_machine,
                debugger_that_dies_lets_the_guest_go_on,
            ],
        )
        .cases(
            Needs::KvmRootGdbAndHardware,
            named!(software_breakpoint_stops_the_guest),
            [("once", 1), ("twice", 2)],
        )
        .tests(
            Needs::KvmRootGdbAndHardware,
            named![watchpoint_stops_the_guest_behind_the_write,],
        )
        .tests(
            Needs::KvmAndRoot,
            named![
                guest_that_does_not_wait_runs,
                machine_ends_while_its_guest_waits,
                thread_of_the_debugger_is_confined,
                debugger_comes_in_once_there_are_descriptors_again,
                breakpoint_of_a_debugger_that_could_not_clean_up_holds_nobody,
            ],
        )
        .run()
}

/// A machine with a debugger's socket.
struct Debugged {
    vmm: Vmm,
    directory: tempfile::TempDir,
    /// What the guest writes to COM1.
    serial: PipeReader,
}

impl Debugged {
    /// Whose guest waits for the debugger.
    fn waiting(code: &[u8], vcpus: u8) -> Self {
        Self::start(code, vcpus, true)
    }

    fn start(code: &[u8], vcpus: u8, wait: bool) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(directory.path().join("gdb")).unwrap();
        let (serial, writer) = std::io::pipe().unwrap();
        let descriptors = vec![OwnedFd::from(listener), writer.into()];
        let mut vmm = Vmm::with_guest(code, descriptors, |config| {
            config.vcpus = vcpus;
            config.gdb = Some(5);
            config.gdb_wait = wait;
            config.serial_log = Some(6);
        });
        assert_eq!(vmm.event(), Some(Event::Running));
        Self {
            vmm,
            directory,
            serial,
        }
    }

    fn socket(&self) -> PathBuf {
        self.directory.path().join("gdb")
    }

    /// gdb with these commands after it has connected.
    fn gdb(&self, commands: &[&str]) -> Command {
        let mut gdb = Command::new("timeout");
        gdb.args([
            "20",
            "gdb",
            "-batch",
            "-nx",
            "-ex",
            "set architecture i386:x86-64",
        ]);
        gdb.args(["-ex", &format!("target remote {}", self.socket().display())]);
        for command in commands {
            gdb.args(["-ex", command]);
        }
        gdb.stdin(Stdio::null());
        gdb
    }

    /// What gdb says.
    fn said(&self, commands: &[&str]) -> String {
        let output = self.gdb(commands).output().unwrap();
        let text = [output.stdout, output.stderr].concat();
        String::from_utf8_lossy(&text).into_owned()
    }

    /// The first vCPU.
    fn first_vcpu(&mut self) -> coracle_vmm::VcpuState {
        match self.vmm.ask(coracle_vmm::role::Action::Vcpus, &[]) {
            Event::Vcpus { vcpus, .. } => vcpus[0].clone(),
            other => panic!("{other:?}"),
        }
    }

    fn ends(self, reason: Exit) {
        let (events, ..) = self.vmm.finish();
        assert_eq!(events, [Event::Exit { reason }]);
    }
}

#[track_caller]
fn assert_said(said: &str, expected: &[&str]) {
    for expected in expected {
        assert!(said.contains(expected), "{expected}\n{said}");
    }
}

/// Turns the machine off.
fn power_off() -> Vec<u8> {
    [&code::power_off()[..], &code::SPIN].concat()
}

fn guest_waits_for_its_debugger_and_goes_on_without_it() {
    let mut debugged = Debugged::waiting(&power_off(), 1);
    sleep(Duration::from_millis(100));
    assert_eq!(debugged.first_vcpu().rip, u64::from(ENTRY));

    let said = debugged.said(&["print/x $rip", "detach"]);

    assert_said(&said, &["= 0x100000", "detached"]);
    debugged.ends(Exit::Shutdown);
}

fn registers_and_memory_are_read_and_written() {
    let debugged = Debugged::waiting(&power_off(), 1);

    let said = debugged.said(&[
        "print/x $cr0 & 1",
        "print $eflags",
        "print/x $rbx",
        // The magic of the start information.
        "x/1xw $rbx",
        "set $rcx = 0x1122334455667788",
        "print/x $rcx",
        "set {int} 0x400000 = 0x12345678",
        "x/1xw 0x400000",
        "set $gs_base = 0x1000",
        "print/x $gs_base",
        "set $xmm3 = 77",
        "print $xmm3",
        "set $cr3 = 5",
        "x/1xb 0xe0000000",
        "detach",
    ]);

    assert_said(
        &said,
        &[
            "$1 = 0x1",
            "$2 = [ ]",
            "$3 = 0x6000",
            "0x6000:\t0x336ec578",
            "$4 = 0x1122334455667788",
            "0x400000:\t0x12345678",
            "$5 = 0x1000",
            "$6 = 77",
            "Could not write registers",
            "Cannot access memory at address 0xe0000000",
        ],
    );
    debugged.ends(Exit::Shutdown);
}

fn step_is_one_instruction() {
    // mov $1, %eax; mov $2, %ecx; mov $3, %edx
    let code = [
        &[0xb8, 1, 0, 0, 0, 0xb9, 2, 0, 0, 0, 0xba, 3, 0, 0, 0][..],
        &power_off(),
    ]
    .concat();
    let debugged = Debugged::waiting(&code, 1);

    let said = debugged.said(&[
        "stepi",
        "printf \"%x %d\\n\", $rip, $rax",
        "stepi",
        "printf \"%x %d\\n\", $rip, $rcx",
        "detach",
    ]);

    assert_said(&said, &["100005 1\n", "10000a 2\n"]);
    debugged.ends(Exit::Shutdown);
}

/// Counts in EAX up to 3, three times, and turns the machine off. `xor %eax, %eax; 1: inc %eax; cmp $3, %eax; jne 1b`.
fn counting() -> (Vec<u8>, u32) {
    let count = [0x31, 0xc0, 0xff, 0xc0, 0x83, 0xf8, 3, 0x75, 0xf9];
    ([&count[..], &power_off()].concat(), ENTRY + 2)
}

fn hardware_breakpoint_stops_the_guest() {
    let (code, inc) = counting();
    let debugged = Debugged::waiting(&code, 2);

    let said = debugged.said(&[
        &format!("hbreak *{inc:#x}"),
        "continue",
        "print $rax",
        "continue",
        "print $rax",
        "delete",
        "continue",
    ]);

    assert_said(
        &said,
        &[
            "Breakpoint 1, 0x0000000000100002",
            "$1 = 0",
            "$2 = 1",
            "exited normally",
        ],
    );
    debugged.ends(Exit::Shutdown);
}

fn software_breakpoint_stops_the_guest(times: i64) {
    let (code, inc) = counting();
    let debugged = Debugged::waiting(&code, 2);
    let place = format!("break *{inc:#x}");
    let mut commands = vec![place.as_str()];
    commands.extend((0..times).flat_map(|_| ["continue", "print $rax"]));
    commands.extend(["x/2xb $rip", "delete", "continue"]);

    let said = debugged.said(&commands);

    let last = format!("${times} = {}", times - 1);
    assert_said(
        &said,
        &["Breakpoint 1, ", &last, "0xff\t0xc0", "exited normally"],
    );
    debugged.ends(Exit::Shutdown);
}

fn watchpoint_stops_the_guest_behind_the_write() {
    let code = [
        code::store(0x40_0000, 7),
        code::store(0x40_0004, 8),
        power_off(),
    ]
    .concat();
    let debugged = Debugged::waiting(&code, 1);

    let said = debugged.said(&[
        "watch *(int *) 0x400004",
        "continue",
        "print/x $rip",
        "delete",
        "detach",
    ]);

    assert_said(&said, &["New value = 8", "= 0x100014"]);
    debugged.ends(Exit::Shutdown);
}

fn vcpus_are_threads() {
    // The others count and spin with their number in BL; the first waits for them and spins.
    let code = [
        code::wake_others(&[&code::COUNT_ME[..23], &code::SPIN].concat()),
        code::wait_for_count(2),
        code::SPIN.to_vec(),
    ]
    .concat();
    let mut debugged = Debugged::start(&code, 3, false);
    let spin = (ENTRY as usize + code.len() - 2) as u64;
    debugged.vmm.wait_until_at(spin);

    let said = debugged.said(&[
        "info threads",
        "thread 3",
        "print $bl",
        "thread apply all print $cs",
    ]);

    assert_said(
        &said,
        &["vCPU 0, running", "vCPU 1, running", "vCPU 2, running"],
    );
    assert_said(&said, &["$1 = 2", "$2 = ", "$3 = ", "$4 = "]);
    assert_eq!(debugged.first_vcpu().activity, Activity::Running);
}

fn running_guest_is_interrupted() {
    let code = [&code::out(0x3f8, b'!')[..], &code::SPIN].concat();
    let mut debugged = Debugged::waiting(&code, 1);
    let gdb = debugged
        .gdb(&["continue", "print/x $rip", "detach"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    debugged.serial.read_exact(&mut [0]).unwrap();
    debugged
        .vmm
        .wait_until_at((ENTRY as usize + code.len() - 2) as u64);
    // The guest runs a little before gdb knows.
    sleep(Duration::from_millis(500));

    interrupt(&gdb);

    let output = gdb.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_said(&said, &["SIGINT", "= 0x100007", "detached"]);
    assert_eq!(debugged.first_vcpu().activity, Activity::Running);
}

/// `timeout` runs gdb as its child.
fn interrupt(timeout: &Child) {
    let id = timeout.id();
    let children = fs::read_to_string(format!("/proc/{id}/task/{id}/children")).unwrap();
    let gdb = children
        .trim()
        .parse()
        .ok()
        .and_then(Pid::from_raw)
        .unwrap();
    kill_process(gdb, Signal::INT).unwrap();
}

fn guest_that_ends_is_a_program_that_exits() {
    let debugged = Debugged::waiting(&power_off(), 2);

    let said = debugged.said(&["continue"]);

    assert_said(&said, &["exited normally"]);
    debugged.ends(Exit::Shutdown);
}

fn kill_ends_the_machine() {
    let debugged = Debugged::waiting(&code::SPIN, 2);

    debugged.said(&["kill"]);

    debugged.ends(Exit::Stopped);
}

fn debugger_that_dies_lets_the_guest_go_on() {
    let debugged = Debugged::waiting(&power_off(), 2);

    drop(UnixStream::connect(debugged.socket()).unwrap());

    debugged.ends(Exit::Shutdown);
}

/// Sends a packet of gdb's protocol; returns what comes back, its acknowledgement first.
fn exchange(mut debugger: &UnixStream, packet: &str, answer: usize) -> String {
    let sum = packet.bytes().fold(0u8, u8::wrapping_add);
    write!(debugger, "${packet}#{sum:02x}").unwrap();
    let mut answer = vec![0; answer];
    debugger.read_exact(&mut answer).unwrap();
    debugger.write_all(b"+").unwrap();
    String::from_utf8(answer).unwrap()
}

fn connect(debugged: &Debugged) -> UnixStream {
    let debugger = UnixStream::connect(debugged.socket()).unwrap();
    debugger.set_read_timeout(Some(DEADLINE)).unwrap();
    debugger
}

fn debugger_comes_in_once_there_are_descriptors_again() {
    let debugged = Debugged::waiting(&power_off(), 1);
    let id = i32::try_from(debugged.vmm.process.id()).unwrap();
    let process = Pid::from_raw(id);
    let is_free = |number: &u64| !debugged.vmm.proc("fd").join(number.to_string()).exists();
    let current = (0..).find(is_free);
    // What the jail sets.
    let hard = getrlimit(Resource::Nofile).maximum;
    let maximum = hard.map(|hard| hard.min(4096));
    let limit = |current| prlimit(process, Resource::Nofile, Rlimit { current, maximum }).unwrap();
    let before = limit(current).current;
    let debugger = connect(&debugged);
    sleep(Duration::from_millis(300));

    limit(before);

    assert_eq!(exchange(&debugger, "!", 5), "+$#00");
    drop(debugger);
    debugged.ends(Exit::Shutdown);
}

fn breakpoint_of_a_debugger_that_could_not_clean_up_holds_nobody() {
    // More output than a pipe holds: mov $70000, %ecx; 1: out ...; loop 1b
    let write = code::out(0x3f8, b'.');
    let back = (-(write.len() as i8) - 2).cast_unsigned();
    let fill = [&[0xb9][..], &70_000u32.to_le_bytes(), &write, &[0xe2, back]].concat();
    let behind = ENTRY as usize + fill.len();
    let debugged = Debugged::waiting(&[fill, power_off()].concat(), 1);
    let debugger = connect(&debugged);
    assert_eq!(
        exchange(&debugger, &format!("Z1,{behind:x},1"), 7),
        "+$OK#9a"
    );
    // Answered when the guest stops.
    exchange(&debugger, "vCont;c", 0);
    debugged.vmm.fill_up(&debugged.serial);

    drop(debugger);
    // Longer than the debugger's thread waits for the vCPU, which is inside of a write.
    sleep(Duration::from_secs(12));
    let mut serial = debugged.serial.try_clone().unwrap();
    let reader = std::thread::spawn(move || serial.read_to_end(&mut Vec::new()).unwrap());

    debugged.ends(Exit::Shutdown);
    assert_eq!(reader.join().unwrap(), 70_000);
}

fn guest_that_does_not_wait_runs() {
    Debugged::start(&power_off(), 2, false).ends(Exit::Shutdown);
}

fn machine_ends_while_its_guest_waits() {
    let mut debugged = Debugged::waiting(&power_off(), 2);
    let _silent = UnixStream::connect(debugged.socket()).unwrap();

    let control = debugged.vmm.control.get_ref();
    control.shutdown(std::net::Shutdown::Both).unwrap();

    assert!(debugged.vmm.wait().success());
}

fn thread_of_the_debugger_is_confined() {
    let debugged = Debugged::start(&code::SPIN, 1, false);

    debugged.vmm.confined_threads(1, |name| name == "gdb");
}
