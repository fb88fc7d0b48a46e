// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A guest in which something else than the agent talks to the host.

use std::time::{Duration, Instant};

use coracle_tests::Host;
use rstest::rstest;

use crate::setup::attacked;

/// What any of them may take, from the guest's start on, in the slowest of labs.
const DEADLINE: Duration = Duration::from_secs(45);
/// The most that one failed run has to say: its sentence, and the end of the guest's console.
const WORDS: usize = 16 << 10;

#[rstest]
#[case::endless_hello("hello without an end", 125, "line has no end")]
#[case::hello_of_rubbish("hello of rubbish", 125, "said no hello")]
#[case::nobody_at_the_port("hello and no more", 125, "agent")]
#[case::hang_up("hangs up", 125, "agent")]
#[case::half_close("ends its answers", 125, "agent")]
#[case::rubbish("answers rubbish", 125, "answer cannot be read")]
#[case::wrong_frame("answers in another kind of frame", 125, "what it was not asked")]
#[case::endless_error("answers an endless error", 125, "of 65536 at most")]
#[case::endless_reason("refuses with an endless reason", 125, "owned")]
#[case::endless_command("does not find an endless command", 127, "owned")]
#[case::endless_line("resets after an endless line", 125, "the guest reset itself")]
#[case::reset("resets", 125, "the guest reset itself")]
#[case::power_off("turns off", 125, "the guest turned itself off")]
#[case::exit("dies", 125, "panicked: Attempted to kill init! exitcode=0x00000700")]
#[case::abort(
    "dies while its container runs",
    125,
    "panicked: Attempted to kill init!"
)]
#[case::wrong_status("has a status beyond all", 125, "4096 is not an exit status")]
#[case::open_streams("keeps its streams open", 125, "did not end the container's stdout")]
fn lying_agent_ends_the_run_with_a_reason(
    #[case] attack: &str,
    #[case] status: i32,
    #[case] reason: &str,
) {
    let host = Host::with_shared_images();
    let started = Instant::now();

    let run = attacked(&host, attack).expect(status);

    assert!(started.elapsed() < DEADLINE, "{:?}", started.elapsed());
    assert!(
        run.stderr.len() < WORDS,
        "{} bytes, from {:?}",
        run.stderr.len(),
        run.stderr.get(..200)
    );
    let controls = |c: char| c.is_control() && c != '\n';
    assert!(!run.stderr.contains(controls), "{:?}", run.stderr);
    run.says(reason);
    host.assert_clean();
}

/// The longest of all: setting a container up takes what it takes, and an agent has a minute for it.
#[test]
fn agent_that_takes_a_call_and_never_answers_is_given_up() {
    let host = Host::with_shared_images();
    let started = Instant::now();

    let run = attacked(&host, "never answers").expect(125);

    assert!(started.elapsed() < 2 * DEADLINE, "{:?}", started.elapsed());
    run.says("the guest did not answer within 75 s");
    host.assert_clean();
}
