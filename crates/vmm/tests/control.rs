// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What the controlling process asks of a jailed machine that runs, and the dumps that it gets.

mod common;

use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::process::Command;
use std::thread::sleep;
use std::time::{Duration, Instant};

use common::harness::{Needs, Tests};
use common::process::{DEADLINE, Vmm};
use common::{ENTRY, code, driver};
use coracle_vmm::role::{Action, Event};
use coracle_vmm::{Activity, Exit, Mode};

fn main() {
    Tests::new()
        .cases(
            Needs::KvmAndRoot,
            named!(vcpus_tell_where_they_stand),
            [
                (
                    "spinning",
                    (code::SPIN.to_vec(), Activity::Running, u64::from(ENTRY), false),
                ),
                (
                    "halted_for_good",
                    (code::HALT.to_vec(), Activity::Halted, u64::from(ENTRY) + 2, false),
                ),
                (
                    "idle",
                    // sti; hlt
                    (vec![0xfb, 0xf4], Activity::Halted, u64::from(ENTRY) + 2, true),
                ),
            ],
        )
        .cases(
            Needs::KvmAndRoot,
            named!(request_that_cannot_be_is_answered),
            [
                ("no_json", ("?", 0, "the request is wrong: expected value at line 1 column 1")),
                ("unknown", (r#"{"id":9,"request":"fly"}"#, 9, "the request is wrong: unknown variant `fly`, expected one of `pause`, `resume`, `vcpus`, `dump`, `cancel` at line 1 column 23")),
                ("dump_to_nowhere", (r#"{"id":9,"request":"dump"}"#, 9, "no descriptor came with the request")),
            ],
        )
        .tests(
            Needs::KvmAndRoot,
            named![
                paused_guest_stands_still_until_it_is_resumed,
                request_that_cannot_be_fulfilled_changes_nothing,
                dump_goes_to_regular_files_only,
                pause_of_thirty_two_vcpus_that_use_a_device,
                pause_of_a_driver_that_resets_its_device_for_ever,
                paused_machine_ends_when_the_controlling_process_is_gone,
                requests_are_answered_in_their_order,
                file_of_a_refused_dump_is_not_the_next_ones,
                file_of_a_dump_that_fails_is_not_the_next_ones,
                dump_ends_when_the_controlling_process_is_gone,
                dump_that_is_given_up_ends_and_the_guest_goes_on,
                request_that_waits_for_a_vcpu_can_be_given_up,
                request_that_is_given_up_in_its_turn_changes_nothing,
                machine_ends_when_its_answers_are_not_read,
            ],
        )
        .tests(
            Needs::KvmRootAndGdb,
            named![gdb_reads_a_dump, gdb_finds_each_vcpu_in_a_dump,],
        )
        .run()
}

/// Starts a machine and waits until it runs.
fn running(code: &[u8], vcpus: u8) -> Vmm {
    started(code, vcpus, None)
}

/// A machine whose serial port is read here.
fn running_with_serial(code: &[u8], vcpus: u8) -> (Vmm, std::io::PipeReader) {
    let (reader, writer) = std::io::pipe().unwrap();
    (started(code, vcpus, Some(writer.into())), reader)
}

fn started(code: &[u8], vcpus: u8, serial: Option<OwnedFd>) -> Vmm {
    let serial_log = serial.as_ref().map(|_| 5);
    let mut vmm = Vmm::with_guest(code, serial.into_iter().collect(), |config| {
        config.vcpus = vcpus;
        config.serial_log = serial_log;
    });
    assert_eq!(vmm.event(), Some(Event::Running));
    vmm
}

fn vcpus_tell_where_they_stand((code, activity, rip, interrupts): (Vec<u8>, Activity, u64, bool)) {
    let mut vmm = running(&code, 2);

    // The guest may take a moment to get there.
    let begin = Instant::now();
    let vcpus = loop {
        let answer = vmm.ask(Action::Vcpus, &[]);
        let Event::Vcpus { id: 7, vcpus } = answer else {
            panic!("{answer:?}");
        };
        if (vcpus[0].activity, vcpus[0].rip) == (activity, rip) || begin.elapsed() > DEADLINE {
            break vcpus;
        }
    };

    let [first, second] = &vcpus[..] else {
        panic!("{vcpus:?}");
    };
    assert_eq!(
        (first.activity, first.rip, first.interrupts_enabled),
        (activity, rip, interrupts)
    );
    assert_eq!((first.mode, first.privilege), (Mode::Protected, 0));
    assert_eq!(
        (second.activity, second.mode),
        (Activity::Waiting, Mode::Real)
    );
}

/// Writes to COM1 for ever.
fn endless_output() -> Vec<u8> {
    let write = code::out(0x3f8, b'.');
    // jmp to the beginning
    let back = (-(write.len() as i8) - 2).cast_unsigned();
    [&write[..], &[0xeb, back]].concat()
}

fn paused_guest_stands_still_until_it_is_resumed() {
    let (mut vmm, mut serial) = running_with_serial(&endless_output(), 1);
    serial.read_exact(&mut [0]).unwrap();

    let paused = vmm.ask(Action::Pause, &[]);

    rustix::io::ioctl_fionbio(&serial, true).unwrap();
    let mut output = Vec::new();
    let _ = serial.read_to_end(&mut output);
    sleep(Duration::from_millis(50));
    let meanwhile = serial.read(&mut [0]);
    rustix::io::ioctl_fionbio(&serial, false).unwrap();
    let resumed = vmm.ask(Action::Resume, &[]);
    assert_eq!([paused, resumed], [(); 2].map(|()| Event::Done { id: 7 }));
    assert!(meanwhile.is_err(), "{meanwhile:?}");
    serial.read_exact(&mut [0]).unwrap();
}

fn request_that_cannot_be_is_answered((line, id, expected): (&str, u64, &str)) {
    let mut vmm = running(&code::SPIN, 1);

    vmm.send(format!("{line}\n").as_bytes());

    let message = expected.to_owned();
    assert_eq!(vmm.event(), Some(Event::Failed { id, message }));
}

fn request_that_cannot_be_fulfilled_changes_nothing() {
    let (mut vmm, mut serial) = running_with_serial(&endless_output(), 1);

    let answer = vmm.ask(Action::Dump, &[]);

    assert!(matches!(answer, Event::Failed { id: 7, .. }), "{answer:?}");
    // More than the pipe can have held before.
    serial.read_exact(&mut [0; 80_000]).unwrap();
}

fn dump_goes_to_regular_files_only() {
    let mut vmm = running(&code::SPIN, 1);
    let (_reader, writer) = std::io::pipe().unwrap();

    let answer = vmm.ask(Action::Dump, &[writer.as_fd()]);

    let message = "the guest cannot be dumped: it can be written to a regular file only".to_owned();
    assert_eq!(answer, Event::Failed { id: 7, message });
}

fn pause_of_thirty_two_vcpus_that_use_a_device() {
    // Each reads a port for ever.
    let read = [0xba, 0x00, 0x06, 0xec, 0xeb, 0xfd];
    let code = [
        code::wake_others(&[&code::COUNT_ME[..23], &read].concat()),
        code::wait_for_count(31),
        code::out(0x3f8, b'!'),
        code::SPIN.to_vec(),
    ]
    .concat();
    let (mut vmm, mut serial) = running_with_serial(&code, 32);
    serial.read_exact(&mut [0; 32]).unwrap();

    let answers = [Action::Pause, Action::Vcpus, Action::Resume, Action::Vcpus]
        .map(|action| vmm.ask(action, &[]));

    assert_eq!(answers[0], Event::Done { id: 7 });
    assert_eq!(answers[2], Event::Done { id: 7 });
    for answer in [&answers[1], &answers[3]] {
        let Event::Vcpus { vcpus, .. } = answer else {
            panic!("{answer:?}");
        };
        let running = vcpus
            .iter()
            .filter(|vcpu| vcpu.activity == Activity::Running);
        assert_eq!((vcpus.len(), running.count()), (32, 32));
    }
}

fn pause_of_a_driver_that_resets_its_device_for_ever() {
    // Each reset and each start waits for the event loop, which the requests are dealt with on.
    let set_up = driver::set_up(driver::WINDOW, 1);
    let back = -i32::try_from(set_up.len() + 5).unwrap();
    let code = [&set_up[..], &[0xe9], &back.to_le_bytes()].concat();
    let mut vmm = Vmm::with_guest(&code, Vec::new(), |config| config.rng = true);
    assert_eq!(vmm.event(), Some(Event::Running));

    let answers: Vec<_> = [Action::Pause, Action::Resume]
        .into_iter()
        .cycle()
        .take(100)
        .map(|action| vmm.ask(action, &[]))
        .collect();

    assert_eq!(answers, vec![Event::Done { id: 7 }; 100]);
}

fn paused_machine_ends_when_the_controlling_process_is_gone() {
    let mut vmm = running(&code::SPIN, 4);
    assert_eq!(vmm.ask(Action::Pause, &[]), Event::Done { id: 7 });

    let control = vmm.control.get_ref();
    control.shutdown(std::net::Shutdown::Write).unwrap();

    let reason = Exit::Stopped;
    assert_eq!(vmm.finish().0, [Event::Exit { reason }]);
}

fn requests_are_answered_in_their_order() {
    let mut vmm = running(&code::SPIN, 2);
    let (first, second) = (tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap());
    let lines = [
        r#"{"id":1,"request":"pause"}"#,
        r#"{"id":2,"request":"dump"}"#,
        r#"{"id":3,"request":"resume"}"#,
        r#"{"id":4,"request":"dump"}"#,
        "",
    ]
    .join("\n");

    vmm.send_with(lines.as_bytes(), &[first.as_fd(), second.as_fd()]);

    let answers = [(); 4].map(|()| vmm.event());
    assert_eq!(answers, [1, 2, 3, 4].map(|id| Some(Event::Done { id })));
    let sizes = [first, second].map(|file| file.metadata().unwrap().len());
    assert!(sizes.iter().all(|size| *size > 16 << 20), "{sizes:?}");
}

fn lengths(files: [File; 2]) -> [u64; 2] {
    files.map(|file| file.metadata().unwrap().len())
}

fn file_of_a_refused_dump_is_not_the_next_ones() {
    let mut vmm = running(&code::SPIN, 1);
    let files = [(); 2].map(|()| tempfile::tempfile().unwrap());
    let wrong = b"{\"id\":1,\"request\":\"dump\",\"to\":\"\"}\n";
    vmm.send_with(wrong, &[files[0].as_fd()]);
    let refused = vmm.event();

    let dumped = vmm.ask(Action::Dump, &[files[1].as_fd()]);

    assert!(
        matches!(refused, Some(Event::Failed { id: 1, .. })),
        "{refused:?}"
    );
    assert_eq!(dumped, Event::Done { id: 7 });
    let lengths = lengths(files);
    assert!(lengths[0] == 0 && lengths[1] > 16 << 20, "{lengths:?}");
}

fn file_of_a_dump_that_fails_is_not_the_next_ones() {
    // Nobody reads its output, so that the vCPU stays inside of a write to the serial port.
    let (mut vmm, mut serial) = running_with_serial(&endless_output(), 1);
    let files = [(); 2].map(|()| tempfile::tempfile().unwrap());
    vmm.fill_up(&serial);
    let failed = vmm.ask(Action::Dump, &[files[0].as_fd()]);
    let reader = std::thread::spawn(move || while serial.read(&mut [0; 65536]).unwrap() > 0 {});

    let dumped = vmm.ask(Action::Dump, &[files[1].as_fd()]);

    drop(vmm);
    reader.join().unwrap();
    let message = "vCPU 0 has not left the guest within 10s".to_owned();
    assert_eq!(failed, Event::Failed { id: 7, message });
    assert_eq!(dumped, Event::Done { id: 7 });
    let lengths = lengths(files);
    assert!(lengths[0] == 0 && lengths[1] > 16 << 20, "{lengths:?}");
}

/// A machine that writes to its serial port, and the file that a long dump of it has begun to be written to.
fn dumping() -> (Vmm, std::io::PipeReader, File) {
    let (serial, writer) = std::io::pipe().unwrap();
    let mut vmm = Vmm::with_guest(&endless_output(), vec![writer.into()], |config| {
        config.memory_mib = 8192;
        config.serial_log = Some(5);
    });
    assert_eq!(vmm.event(), Some(Event::Running));
    let file = tempfile::tempfile().unwrap();
    vmm.send_with(b"{\"id\":1,\"request\":\"dump\"}\n", &[file.as_fd()]);
    let begin = Instant::now();
    while file.metadata().unwrap().len() == 0 {
        assert!(begin.elapsed() < DEADLINE, "the dump does not begin");
    }
    (vmm, serial, file)
}

/// The header of a dump is written last.
fn is_a_dump(file: &File) -> bool {
    let mut magic = [0; 4];
    std::os::unix::fs::FileExt::read_exact_at(file, &mut magic, 0).unwrap();
    magic == *b"\x7fELF"
}

fn dump_ends_when_the_controlling_process_is_gone() {
    let (vmm, _serial, file) = dumping();

    let control = vmm.control.get_ref();
    control.shutdown(std::net::Shutdown::Write).unwrap();

    let reason = Exit::Stopped;
    assert_eq!(vmm.finish().0.last(), Some(&Event::Exit { reason }));
    assert!(!is_a_dump(&file));
}

fn dump_that_is_given_up_ends_and_the_guest_goes_on() {
    let (mut vmm, mut serial, file) = dumping();

    vmm.send(b"{\"id\":2,\"request\":{\"cancel\":1}}\n");

    let answers = [(); 2].map(|()| vmm.event().unwrap());
    let message = "the guest cannot be dumped: nobody wants it any more".to_owned();
    let expected = [Event::Failed { id: 1, message }, Event::Done { id: 2 }];
    assert_eq!(answers, expected);
    assert!(!is_a_dump(&file));
    // More than the pipe can have held before.
    serial.read_exact(&mut [0; 80_000]).unwrap();
}

fn request_that_waits_for_a_vcpu_can_be_given_up() {
    // Nobody reads its output, so that the vCPU stays inside of a write to the serial port.
    let (mut vmm, mut serial) = running_with_serial(&endless_output(), 1);
    vmm.fill_up(&serial);
    let begin = Instant::now();
    vmm.send(b"{\"id\":1,\"request\":\"pause\"}\n");
    sleep(Duration::from_millis(50));

    vmm.send(b"{\"id\":2,\"request\":{\"cancel\":1}}\n");

    let answers = [(); 2].map(|()| vmm.event().unwrap());
    let message = "nobody wants it any more".to_owned();
    let expected = [Event::Failed { id: 1, message }, Event::Done { id: 2 }];
    assert_eq!(answers, expected);
    assert!(begin.elapsed() < Duration::from_secs(5));
    serial.read_exact(&mut [0; 80_000]).unwrap();
}

fn request_that_is_given_up_in_its_turn_changes_nothing() {
    let mut vmm = running(&code::SPIN, 1);
    let files = [(); 3].map(|()| tempfile::tempfile().unwrap());
    let done = vmm.ask(Action::Dump, &[files[0].as_fd()]);
    let lines = [
        r#"{"id":1,"request":"dump"}"#,
        // One that waits, one that is over, and one that is yet to come.
        r#"{"id":2,"request":{"cancel":1}}"#,
        r#"{"id":3,"request":{"cancel":7}}"#,
        r#"{"id":4,"request":{"cancel":5}}"#,
        r#"{"id":5,"request":"dump"}"#,
        "",
    ]
    .join("\n");

    vmm.send_with(lines.as_bytes(), &[files[1].as_fd(), files[2].as_fd()]);

    let answers = [(); 5].map(|()| vmm.event().unwrap());
    let message = "nobody wants it any more".to_owned();
    assert_eq!(done, Event::Done { id: 7 });
    assert_eq!(answers[0], Event::Failed { id: 1, message });
    assert_eq!(answers[1..], [2, 3, 4, 5].map(|id| Event::Done { id }));
    let sizes = files.map(|file| file.metadata().unwrap().len());
    assert!(sizes[0] > 0 && sizes[1] == 0 && sizes[2] > 0, "{sizes:?}");
}

fn machine_ends_when_its_answers_are_not_read() {
    let mut vmm = running(&code::SPIN, 1);

    vmm.send(&b"?\n".repeat(3000));

    assert!(!vmm.wait().success());
    let mut stderr = String::new();
    let mut pipe = vmm.process.stderr.take().unwrap();
    pipe.read_to_string(&mut stderr).unwrap();
    let expected = "coracle vmm: the virtual machine failed: the controlling process does not read the answers to its requests\n";
    assert_eq!(stderr, expected);
}

/// What gdb says of a core file.
fn gdb(core: &Path, commands: &[&str]) -> String {
    let mut gdb = Command::new("gdb");
    gdb.args(["-batch", "-nx", "-core"]).arg(core);
    for command in commands {
        gdb.args(["-ex", command]);
    }
    let output = gdb.output().unwrap();
    String::from_utf8(output.stdout).unwrap()
}

/// A machine that has run `code`, which ends with a loop, is dumped, and gdb asked about it.
fn gdb_about_a_dump_of(code: &[u8], vcpus: u8, wait_for: usize, commands: &[&str]) -> String {
    let (mut vmm, mut serial) = running_with_serial(code, vcpus);
    serial.read_exact(&mut vec![0; wait_for]).unwrap();
    vmm.wait_until_at((ENTRY as usize + code.len() - 2) as u64);
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("core");
    let file = File::create(&path).unwrap();
    let answer = vmm.ask(Action::Dump, &[file.as_fd()]);
    assert_eq!(answer, Event::Done { id: 7 });
    gdb(&path, commands)
}

fn gdb_reads_a_dump() {
    let code = [
        &code::store(0x40_0010, 0x1234_5678)[..],
        // mov $0xcafe, %ecx; mov $0x300000, %esp
        &[0xb9, 0xfe, 0xca, 0, 0, 0xbc, 0, 0, 0x30, 0],
        &code::out(0x3f8, b'!'),
        &code::SPIN,
    ]
    .concat();

    let said = gdb_about_a_dump_of(
        &code,
        1,
        1,
        &[
            r#"printf "%x %x %x\n", $rip, $rcx, $rsp"#,
            "x/2xw 0x400010",
            "x/1i $rip",
            "x/1xw 0x500000",
        ],
    );

    let spin = ENTRY as usize + code.len() - 2;
    for expected in [
        format!("{spin:x} cafe 300000\n"),
        "0x400010:\t0x12345678\t0x00000000".to_owned(),
        format!("=> {spin:#x}:\tjmp    {spin:#x}"),
        "0x500000:\t0x00000000".to_owned(),
    ] {
        assert!(said.contains(&expected), "{expected}\n{said}");
    }
}

fn gdb_finds_each_vcpu_in_a_dump() {
    // The others keep their number in BL.
    let code = [
        code::wake_others(&[&code::COUNT_ME[..23], &code::SPIN].concat()),
        code::wait_for_count(3),
        code::SPIN.to_vec(),
    ]
    .concat();

    let said = gdb_about_a_dump_of(&code, 4, 3, &["thread apply all print $bl"]);

    for (thread, number) in [(2, 1), (3, 2), (4, 3)] {
        let expected = format!("Thread {thread} (LWP {thread}):\n");
        let (_, after) = said
            .split_once(&expected)
            .unwrap_or_else(|| panic!("{said}"));
        let value = after.lines().next().unwrap();
        assert!(value.ends_with(&format!("= {number}")), "{said}");
    }
}
