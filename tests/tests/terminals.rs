// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Terminals: of a container, and of a command that is executed in one.

use std::thread;
use std::time::Duration;

use coracle_tests::tools::kill;
use coracle_tests::{Host, Image, Running, Terminal};
use rstest::rstest;

#[rstest]
fn shell_on_a_terminal_is_used_as_one(#[values(Image::BUSYBOX, Image::DEBIAN)] image: Image) {
    let host = Host::with_shared_images();
    let terminal = Terminal::new(100, 40);
    let run = host
        .container(image)
        .terminal(&terminal)
        .command(["sh"])
        .start();

    terminal
        .type_in("stty size; echo $TERM; test -t 0 && test -t 1 && test -t 2 && echo all-three\n");

    terminal.await_text("40 100\r\n");
    terminal.await_text("xterm\r\n");
    terminal.await_text("all-three\r\n");
    assert!(
        !terminal.is_cooked(),
        "keys go to the container as they are"
    );
    terminal.resize(132, 50);
    terminal.type_in("sleep 0.5; stty size\n");
    terminal.await_text("50 132\r\n");
    terminal.type_in("exit 5\n");
    run.finish().expect(5);
    assert!(terminal.is_cooked(), "the terminal is as it was");
    host.assert_clean();
}

#[test]
fn interrupt_key_is_the_containers() {
    let host = Host::with_shared_images();
    let terminal = Terminal::default();
    let run = host
        .container(Image::BUSYBOX)
        .terminal(&terminal)
        .shell("trap 'echo caught; exit 4' INT; echo ready; while :; do sleep 0.1; done")
        .start();
    terminal.await_text("ready");

    terminal.type_in("\x03");

    terminal.await_text("caught");
    run.finish().expect(4);
    assert!(terminal.is_cooked());
    host.assert_clean();
}

/// Asks for the end of a run whose guest has stopped to answer, until it ends.
fn insist(host: &Host, run: &Running) {
    // SAFETY: the process is one of this host's.
    unsafe { libc::kill(host.process_of("role:vmm"), libc::SIGSTOP) };
    run.signal(libc::SIGTERM);
    // For so long an agent is only slow.
    thread::sleep(Duration::from_millis(2200));
    run.signal(libc::SIGTERM);
    thread::sleep(Duration::from_millis(200));
    run.signal(libc::SIGTERM);
}

#[rstest]
#[case::killed(|_: &Host, run: &Running| run.signal(libc::SIGKILL), 137)]
#[case::without_a_machine(|host: &Host, _: &Running| kill(host.process_of("role:vmm")), 125)]
#[case::ended_by_the_third_signal(insist, 137)]
fn terminal_of_a_run_is_given_back_however_it_ends(
    #[case] end: fn(&Host, &Running),
    #[case] status: i32,
) {
    let host = Host::with_shared_images();
    let terminal = Terminal::default();
    let run = host
        .container(Image::BUSYBOX)
        .terminal(&terminal)
        .shell("echo ready; sleep 1000")
        .start();
    terminal.await_text("ready");
    assert!(!terminal.is_cooked());

    end(&host, &run);

    run.finish().expect(status);
    host.assert_clean();
    assert!(terminal.is_cooked());
}

#[test]
fn terminal_that_is_gone_is_told_to_the_container() {
    let host = Host::with_shared_images();
    let terminal = Terminal::default();
    let run = host
        .container(Image::BUSYBOX)
        .terminal(&terminal)
        .shell("trap 'exit 7' HUP; echo ready; while :; do sleep 0.1; done")
        .start();
    terminal.await_text("ready");

    terminal.hang_up();

    run.finish().expect(7);
    host.assert_clean();
}

#[test]
fn terminal_of_who_visits_a_container_is_given_back_and_may_be_gone() {
    let host = Host::with_shared_images();
    host.container(Image::BUSYBOX)
        .detached()
        .option("--name", "c")
        .command(["sleep", "1000"])
        .expect(0);
    let script = "trap 'exit 7' HUP; echo ready; while :; do sleep 0.1; done";
    let exec = ["exec", "-it", "c", "sh", "-c", script];
    let console = ["console", "c"];

    for words in [&exec[..], &console] {
        let terminal = Terminal::default();
        let run = host.start_on_terminal(words, &terminal);
        terminal.await_cooked(false);
        run.signal(libc::SIGKILL);
        run.finish().expect(137);
        terminal.await_cooked(true);
    }
    let terminals = [Terminal::default(), Terminal::default()];
    let [executed, watched] = [(&exec[..], &terminals[0]), (&console, &terminals[1])]
        .map(|(words, terminal)| host.start_on_terminal(words, terminal));
    terminals[0].await_text("ready");
    terminals[1].await_cooked(false);
    for terminal in terminals {
        terminal.hang_up();
    }
    // Only who has a process in the container has something to tell it.
    executed.finish().expect(7);
    watched.finish().expect(128 + libc::SIGHUP);

    host.run(&["exec", "c", "true"]).expect(0);
    host.run(&["rm", "-f", "c"]).expect(0);
    host.assert_clean();
}

#[test]
fn end_of_file_key_ends_what_reads() {
    let host = Host::with_shared_images();
    let terminal = Terminal::default();
    let run = host
        .container(Image::BUSYBOX)
        .terminal(&terminal)
        .command(["cat"])
        .start();
    terminal.type_in("line\n");
    terminal.await_text("line\r\nline\r\n");

    terminal.type_in("\x04");

    run.finish().expect(0);
}

#[test]
fn executed_command_has_a_terminal_of_its_own() {
    let host = Host::with_shared_images();
    host.container(Image::BUSYBOX)
        .detached()
        .option("--name", "c")
        .command(["sleep", "1000"])
        .expect(0);
    let terminal = Terminal::new(90, 30);
    let run = host.start_on_terminal(&["exec", "-it", "c", "sh"], &terminal);

    terminal.type_in("stty size; tty\n");

    terminal.await_text("30 90\r\n");
    terminal.await_text("/dev/pts/");
    terminal.resize(70, 20);
    terminal.type_in("sleep 0.5; stty size\n");
    terminal.await_text("20 70\r\n");
    terminal.type_in("exit 6\n");
    run.finish().expect(6);
    assert!(terminal.is_cooked());
    host.run(&["rm", "-f", "c"]).expect(0);
    host.assert_clean();
}

#[rstest]
#[case::run(&["run", "-it", "--network=none"])]
#[case::exec(&["exec", "-it"])]
fn terminal_is_not_made_of_what_is_none(#[case] words: &[&str]) {
    let host = Host::new();
    let words = [words, &["something", "true"]].concat();

    host.run(&words)
        .expect(125)
        .says_once(&["standard input is not a terminal", "leave out -t"]);
    host.assert_clean();
}

#[test]
fn output_of_a_terminal_can_be_a_file() {
    let host = Host::with_shared_images();

    let run = host
        .container(Image::BUSYBOX)
        .flag("-t")
        .shell("test -t 1 && echo terminal")
        .expect(0);

    assert_eq!(run.text(), "terminal");
}
