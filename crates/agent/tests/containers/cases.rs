// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The cases. Each makes what it needs and removes it.

use std::fs;
use std::os::fd::IntoRawFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;
use std::time::Duration;

use coracle_agent::container::Containers;
use coracle_agent::service::Service;
use coracle_agent_api::{AgentError, CallError, Client, ErrorKind, messages, methods};
use serde_json::json;

use crate::bundle::{Bundle, Outcome};
use crate::machine::Machine;

pub const ALL: &[(&str, crate::Case)] = cases![
    output_and_status_come_back,
    all_output_is_there_when_the_end_is_reported,
    input_reaches_the_command_and_ends,
    status_of_a_signal_is_128_and_its_number,
    signal_that_is_handled_is_the_commands_business,
    first_process_is_alone_in_its_namespaces,
    user_groups_and_umask_are_set,
    capabilities_are_as_the_spec_says,
    limits_of_the_process_are_set,
    standard_streams_can_be_opened_anew_by_any_user,
    default_devices_work_and_others_are_denied,
    proc_is_masked_and_read_only,
    root_can_be_read_only,
    kernel_parameter_is_set_in_its_namespace,
    volume_is_shared_with_the_host,
    read_only_volume_cannot_be_written,
    file_is_mounted_upon_a_file_that_is_made,
    unknown_option_of_a_mount_is_named,
    source_of_a_mount_that_is_missing_is_named,
    missing_command_is_found_missing_before_the_start,
    plain_file_is_no_command,
    file_without_a_format_fails_at_the_start,
    script_without_its_interpreter_fails_at_the_start,
    missing_working_directory_is_named,
    container_starts_once,
    deletion_ends_a_container_at_its_gate,
    deletion_takes_all_processes_along,
    container_that_fails_leaves_nothing,
    host_takes_a_container_through_its_life,
    host_waits_for_many_processes_at_once,
];

fn run(bundle: &Bundle, machine: &Machine) -> Outcome {
    bundle.run(machine).unwrap()
}

fn stdout_of(machine: &Machine, script: &str) -> String {
    let outcome = run(&Bundle::new(machine, script), machine);
    assert_eq!(outcome.stderr, "");
    outcome.stdout
}

fn failure_of(bundle: &Bundle, machine: &Machine) -> AgentError {
    bundle.run(machine).unwrap_err()
}

fn output_and_status_come_back(machine: &Machine) {
    let outcome = run(
        &Bundle::new(machine, "echo out; echo err >&2; exit 7"),
        machine,
    );

    assert_eq!(
        (outcome.stdout.as_str(), outcome.stderr.as_str()),
        ("out\n", "err\n")
    );
    assert_eq!(outcome.end.exit.status, 7);
    assert!(!outcome.end.oom_killed);
}

fn all_output_is_there_when_the_end_is_reported(machine: &Machine) {
    let outcome = run(
        &Bundle::new(machine, "dd if=/dev/zero bs=65536 count=64 2>/dev/null"),
        machine,
    );

    assert_eq!(outcome.stdout.len(), 64 * 65536);
}

fn input_reaches_the_command_and_ends(machine: &Machine) {
    let bundle = Bundle::new(machine, "cat");
    let mut running = bundle.create(machine).unwrap();

    running.write_stdin(b"one\ntwo\n");
    running.start().unwrap();

    assert_eq!(running.finish().stdout, "one\ntwo\n");
}

fn status_of_a_signal_is_128_and_its_number(machine: &Machine) {
    let bundle = Bundle::new(machine, "sleep 1000");
    let running = bundle.create(machine).unwrap();
    running.start().unwrap();

    running
        .containers
        .signal(running.first(), 9, false)
        .unwrap();

    assert_eq!(running.finish().end.exit.status, 137);
}

fn signal_that_is_handled_is_the_commands_business(machine: &Machine) {
    let script = "trap 'exit 3' TERM; touch /ready; while :; do sleep 0.01; done";
    let bundle = Bundle::new(machine, script);
    let running = bundle.create(machine).unwrap();
    running.start().unwrap();
    while !bundle.path("rootfs/ready").exists() {
        std::thread::sleep(Duration::from_millis(1));
    }

    running
        .containers
        .signal(running.first(), 15, false)
        .unwrap();

    assert_eq!(running.finish().end.exit.status, 3);
}

fn first_process_is_alone_in_its_namespaces(machine: &Machine) {
    let script = "echo $$; hostname; ls /sys/class/net; cat /proc/self/cgroup; ls / ";

    let stdout = stdout_of(machine, script);

    assert!(stdout.starts_with("1\nvessel\nlo\n"), "{stdout}");
    // With its own cgroup namespace it sees itself at the root.
    assert!(stdout.contains("0::/\n"), "{stdout}");
    assert!(stdout.ends_with("bin\ndev\nproc\nsys\n"), "{stdout}");
}

fn user_groups_and_umask_are_set(machine: &Machine) {
    let user = json!({"uid": 1000, "gid": 100, "additionalGids": [10, 20], "umask": 0o27});
    let bundle = Bundle::new(machine, "id -u; id -g; id -G; umask; pwd; echo $PATH $HOME")
        .with("/process/user", user)
        .with("/process/cwd", json!("/bin"))
        .with("/process/env", json!(["PATH=/bin", "HOME=/nowhere"]));

    let stdout = run(&bundle, machine).stdout;

    assert_eq!(stdout, "1000\n100\n100 10 20\n0027\n/bin\n/bin /nowhere\n");
}

fn capabilities_are_as_the_spec_says(machine: &Machine) {
    let capabilities = json!({
        "bounding": ["CAP_CHOWN", "CAP_KILL"],
        "permitted": ["CAP_CHOWN", "CAP_KILL"],
        "effective": ["CAP_CHOWN"],
        "inheritable": ["CAP_KILL"],
        "ambient": ["CAP_KILL"],
    });
    // Not by a shell, which ignores signals as it likes.
    let bundle = Bundle::new(machine, "")
        .with("/process/args", json!(["cat", "/proc/self/status"]))
        .with("/process/capabilities", capabilities)
        .with("/process/user", json!({"uid": 1000, "gid": 1000}))
        .with("/process/noNewPrivileges", json!(true));

    let stdout = run(&bundle, machine).stdout;

    let field = |name: &str| {
        let line = stdout.lines().find(|line| line.starts_with(name)).unwrap();
        line.split_whitespace().nth(1).unwrap().to_owned()
    };
    // What another user has after the execution is what was ambient.
    assert_eq!(field("CapInh:"), "0000000000000020");
    assert_eq!(field("CapPrm:"), "0000000000000020");
    assert_eq!(field("CapEff:"), "0000000000000020");
    assert_eq!(field("CapBnd:"), "0000000000000021");
    assert_eq!(field("CapAmb:"), "0000000000000020");
    assert_eq!(field("NoNewPrivs:"), "1");
    assert_eq!(field("SigBlk:"), "0000000000000000");
    assert_eq!(field("SigIgn:"), "0000000000000000");
}

fn limits_of_the_process_are_set(machine: &Machine) {
    let limits = json!([{"type": "RLIMIT_NOFILE", "soft": 100, "hard": 200}]);
    let bundle = Bundle::new(
        machine,
        "ulimit -Sn; ulimit -Hn; cat /proc/self/oom_score_adj",
    )
    .with("/process/rlimits", limits)
    .with("/process/oomScoreAdj", json!(500));

    assert_eq!(run(&bundle, machine).stdout, "100\n200\n500\n");
}

fn standard_streams_can_be_opened_anew_by_any_user(machine: &Machine) {
    let bundle = Bundle::new(machine, "echo out > /dev/stdout; echo err > /dev/stderr")
        .with("/process/user", json!({"uid": 1000, "gid": 1000}));

    let outcome = run(&bundle, machine);

    assert_eq!(
        (outcome.stdout.as_str(), outcome.stderr.as_str()),
        ("out\n", "err\n")
    );
}

fn default_devices_work_and_others_are_denied(machine: &Machine) {
    let script = "echo x > /dev/null && dd if=/dev/urandom of=/dev/zero bs=1 count=8 2>/dev/null && ls /dev; \
        mknod /dev/memory c 1 1 && cat /dev/memory";
    let capabilities = json!({
        "bounding": ["CAP_MKNOD", "CAP_SYS_RAWIO"],
        "permitted": ["CAP_MKNOD", "CAP_SYS_RAWIO"],
        "effective": ["CAP_MKNOD", "CAP_SYS_RAWIO"],
    });
    let bundle = Bundle::new(machine, script).with("/process/capabilities", capabilities);

    let outcome = run(&bundle, machine);

    assert_eq!(
        outcome.stdout.split_whitespace().collect::<Vec<_>>(),
        [
            "fd", "full", "mqueue", "null", "ptmx", "pts", "random", "shm", "stderr", "stdin",
            "stdout", "tty", "urandom", "zero"
        ]
    );
    assert!(
        outcome
            .stderr
            .contains("/dev/memory': Operation not permitted"),
        "{}",
        outcome.stderr
    );
}

fn proc_is_masked_and_read_only(machine: &Machine) {
    let script = "cat /proc/version; ls /proc/acpi /proc/bus; echo 1 > /proc/sys/kernel/domainname";
    let bundle = Bundle::new(machine, script)
        .with(
            "/linux/maskedPaths",
            json!(["/proc/version", "/proc/bus", "/proc/none"]),
        )
        .with("/linux/readonlyPaths", json!(["/proc/sys", "/proc/none/x"]));

    let outcome = run(&bundle, machine);

    assert!(!outcome.stdout.contains("Linux"), "{}", outcome.stdout);
    assert!(!outcome.stdout.contains("pci"), "{}", outcome.stdout);
    assert!(
        outcome.stderr.contains("Read-only file system"),
        "{}",
        outcome.stderr
    );
}

fn root_can_be_read_only(machine: &Machine) {
    let bundle =
        Bundle::new(machine, "touch /dev/shm/x && touch /x").with("/root/readonly", json!(true));

    let outcome = run(&bundle, machine);

    assert!(
        outcome.stderr.contains("/x: Read-only file system"),
        "{}",
        outcome.stderr
    );
    assert!(!bundle.path("rootfs/x").exists());
}

fn kernel_parameter_is_set_in_its_namespace(machine: &Machine) {
    let bundle = Bundle::new(machine, "cat /proc/sys/kernel/msgmax")
        .with("/linux/sysctl", json!({"kernel.msgmax": "4242"}));

    let outcome = run(&bundle, machine);

    assert_eq!(outcome.stdout, "4242\n");
    assert_ne!(
        fs::read_to_string("/proc/sys/kernel/msgmax").unwrap(),
        "4242\n"
    );
}

fn volume_is_shared_with_the_host(machine: &Machine) {
    let bundle = Bundle::new(machine, "cat /data/in; echo hello > /data/out").with_mount(
        json!({"destination": "/data", "type": "bind", "source": "volumes/0", "options": ["rbind", "rprivate"]}),
    );
    fs::write(bundle.path("volumes/0/in"), "from the host\n").unwrap();

    let outcome = run(&bundle, machine);

    assert_eq!(outcome.stdout, "from the host\n");
    assert_eq!(
        fs::read_to_string(bundle.path("volumes/0/out")).unwrap(),
        "hello\n"
    );
}

fn read_only_volume_cannot_be_written(machine: &Machine) {
    let bundle = Bundle::new(machine, "touch /data/x").with_mount(
        json!({"destination": "/data", "source": "volumes/0", "options": ["rbind", "ro"]}),
    );

    let outcome = run(&bundle, machine);

    assert!(
        outcome.stderr.contains("Read-only file system"),
        "{}",
        outcome.stderr
    );
}

fn file_is_mounted_upon_a_file_that_is_made(machine: &Machine) {
    let bundle = Bundle::new(machine, "cat /etc/hosts").with_mount(
        json!({"destination": "/etc/hosts", "type": "bind", "source": "volumes/1", "options": ["bind", "ro"]}),
    );
    fs::write(bundle.path("volumes/1"), "127.0.0.1 localhost\n").unwrap();

    assert_eq!(run(&bundle, machine).stdout, "127.0.0.1 localhost\n");
}

fn unknown_option_of_a_mount_is_named(machine: &Machine) {
    let bundle = Bundle::new(machine, "true").with_mount(
        json!({"destination": "/data", "type": "tmpfs", "source": "tmpfs", "options": ["colour=red"]}),
    );

    let error = failure_of(&bundle, machine);

    assert_eq!(error.kind, ErrorKind::Mount);
    assert_eq!(
        error.message,
        "cannot mount tmpfs on /data: option `colour`: tmpfs: Unknown parameter 'colour'"
    );
}

fn source_of_a_mount_that_is_missing_is_named(machine: &Machine) {
    let bundle = Bundle::new(machine, "true")
        .with_mount(json!({"destination": "/data", "type": "bind", "source": "volumes/9"}));

    let error = failure_of(&bundle, machine);

    assert!(
        error
            .message
            .starts_with("cannot mount volumes/9 on /data: open the source: No such file"),
        "{error}"
    );
}

fn missing_command_is_found_missing_before_the_start(machine: &Machine) {
    let bundle = Bundle::new(machine, "").with("/process/args", json!(["fly"]));

    let error = bundle.create(machine).err().unwrap();

    assert_eq!(error.kind, ErrorKind::CommandNotFound);
    assert_eq!(error.message, "command `fly` was not found in PATH (/bin)");
}

fn plain_file_is_no_command(machine: &Machine) {
    let bundle = Bundle::new(machine, "").with("/process/args", json!(["/notes"]));
    fs::write(bundle.path("rootfs/notes"), "").unwrap();

    let error = bundle.create(machine).err().unwrap();

    assert_eq!(error.kind, ErrorKind::CommandNotExecutable);
}

fn executable(bundle: &Bundle, contents: &str) {
    let file = bundle.path("rootfs/program");
    fs::write(&file, contents).unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o755)).unwrap();
}

fn file_without_a_format_fails_at_the_start(machine: &Machine) {
    let bundle = Bundle::new(machine, "").with("/process/args", json!(["/program"]));
    executable(&bundle, "no format at all");
    let running = bundle.create(machine).unwrap();

    let error = running.start().unwrap_err();

    assert_eq!(error.kind, ErrorKind::CommandNotExecutable);
    assert_eq!(
        error.message,
        "cannot execute `/program`: it has no format that the kernel can execute"
    );
    assert_eq!(running.finish().end.exit.status, 126);
}

fn script_without_its_interpreter_fails_at_the_start(machine: &Machine) {
    let bundle = Bundle::new(machine, "").with("/process/args", json!(["/program"]));
    executable(&bundle, "#!/usr/bin/perl\n");
    let running = bundle.create(machine).unwrap();

    let error = running.start().unwrap_err();

    assert_eq!(error.kind, ErrorKind::CommandNotFound);
    assert_eq!(running.finish().end.exit.status, 127);
}

fn missing_working_directory_is_named(machine: &Machine) {
    let bundle = Bundle::new(machine, "true").with("/process/cwd", json!("/srv"));

    let error = failure_of(&bundle, machine);

    assert_eq!(error.kind, ErrorKind::WorkingDirectory);
    assert!(
        error
            .message
            .starts_with("cannot enter the working directory /srv: "),
        "{error}"
    );
}

fn container_starts_once(machine: &Machine) {
    let bundle = Bundle::new(machine, "sleep 1000");
    let running = bundle.create(machine).unwrap();
    running.start().unwrap();

    let error = running.start().unwrap_err();

    running.containers.signal(running.first(), 9, true).unwrap();
    running.finish();
    assert_eq!(error.kind, ErrorKind::WrongState);
}

fn deletion_ends_a_container_at_its_gate(machine: &Machine) {
    let bundle = Bundle::new(machine, "touch /ran");
    let running = bundle.create(machine).unwrap();

    running.containers.delete(running.first()).unwrap();
    running.containers.delete(running.first()).unwrap();

    let error = running.containers.wait(running.first()).unwrap_err();
    assert_eq!(error.kind, ErrorKind::NoSuchContainer);
    assert!(!bundle.path("rootfs/ran").exists());
    assert!(!machine.cgroups().contains(&running.id));
}

fn deletion_takes_all_processes_along(machine: &Machine) {
    let bundle = Bundle::new(machine, "sleep 1000 & sleep 1000 & touch /ready; wait");
    let running = bundle.create(machine).unwrap();
    running.start().unwrap();
    while !bundle.path("rootfs/ready").exists() {
        std::thread::sleep(Duration::from_millis(1));
    }

    running.containers.delete(running.first()).unwrap();

    assert!(!machine.cgroups().contains(&running.id));
}

fn container_that_fails_leaves_nothing(machine: &Machine) {
    let bundle = Bundle::new(machine, "true").with("/root/path", json!("nothing"));
    let mounts = || {
        fs::read_to_string("/proc/self/mountinfo")
            .unwrap()
            .lines()
            .count()
    };
    let before = mounts();

    let error = failure_of(&bundle, machine);

    assert!(
        error
            .message
            .starts_with("cannot open the root file system nothing: "),
        "{error}"
    );
    let id = crate::bundle::id_of(&bundle.path(""));
    assert!(!machine.cgroups().contains(&id));
    assert_eq!(mounts(), before);
}

/// A server of an agent for this bundle, and a client of it.
fn served(bundle: &Bundle, machine: &Machine) -> (ttrpc::Server, Client) {
    let socket = bundle.path("agent.sock");
    let listener = UnixListener::bind(&socket).unwrap();
    let share = bundle.path("").to_str().unwrap().to_owned();
    let containers = Containers::new(machine.reaper.clone(), machine.hierarchy.clone(), share);
    let mut server = ttrpc::Server::new()
        .add_listener(listener.into_raw_fd())
        .unwrap()
        .register_service(methods(Arc::new(Service::new(containers))));
    server.start().unwrap();
    let client = Client::new(UnixStream::connect(&socket).unwrap()).unwrap();
    (server, client)
}

fn host_takes_a_container_through_its_life(machine: &Machine) {
    let bundle = Bundle::new(machine, "cat; exit 9");
    let id = crate::bundle::id_of(&bundle.path(""));
    let (_server, mut agent) = served(&bundle, machine);
    let timeout = Duration::from_secs(30);
    let create = messages::CreateContainerRequest {
        id: id.clone(),
        spec: bundle.spec.to_string().into_bytes(),
        ..Default::default()
    };
    let start = messages::StartProcessRequest {
        container_id: id.clone(),
        ..Default::default()
    };
    let wait = messages::WaitProcessRequest {
        container_id: id.clone(),
        ..Default::default()
    };
    let delete = messages::DeleteProcessRequest {
        container_id: id,
        ..Default::default()
    };
    let failure = |error| match error {
        CallError::Agent(error) => error.kind,
        other => panic!("{other}"),
    };

    let too_early = agent.call(&start, timeout).unwrap_err();
    let created = agent.call(&create, timeout).unwrap();
    let again = agent.call(&create, timeout).unwrap_err();
    agent.call(&start, timeout).unwrap();
    let end = agent.call(&wait, timeout).unwrap();
    agent.call(&delete, timeout).unwrap();
    let too_late = agent.call(&wait, timeout).unwrap_err();

    assert_eq!(failure(too_early), ErrorKind::NoSuchContainer);
    assert!(created.pid > 1);
    assert_eq!(failure(again), ErrorKind::ContainerExists);
    assert_eq!(end.exit_status, 9);
    assert!(end.exited_at_nanoseconds > 0);
    assert_eq!(failure(too_late), ErrorKind::NoSuchContainer);
}

fn host_waits_for_many_processes_at_once(machine: &Machine) {
    let bundle = Bundle::new(machine, "sleep 1000");
    let id = crate::bundle::id_of(&bundle.path(""));
    let (_server, mut agent) = served(&bundle, machine);
    let timeout = Duration::from_secs(30);
    let create = messages::CreateContainerRequest {
        id: id.clone(),
        spec: bundle.spec.to_string().into_bytes(),
        ..Default::default()
    };
    let first = messages::StartProcessRequest {
        container_id: id.clone(),
        ..Default::default()
    };
    agent.call(&create, timeout).unwrap();
    agent.call(&first, timeout).unwrap();
    let waits: Vec<_> = (0..100)
        .map(|number| {
            let exec_id = number.to_string();
            let create = messages::CreateExecRequest {
                container_id: id.clone(),
                exec_id: exec_id.clone(),
                process: crate::exec::process("sleep 1000").to_string().into_bytes(),
                ..Default::default()
            };
            let start = messages::StartProcessRequest {
                exec_id: exec_id.clone(),
                ..first.clone()
            };
            let wait = messages::WaitProcessRequest {
                container_id: id.clone(),
                exec_id,
                ..Default::default()
            };
            agent.call(&create, timeout).unwrap();
            agent.call(&start, timeout).unwrap();
            agent.send(&wait).unwrap()
        })
        .collect();
    let list = messages::ListProcessesRequest {
        container_id: id.clone(),
        ..Default::default()
    };
    let delete = messages::DeleteProcessRequest {
        container_id: id,
        ..Default::default()
    };

    let listed = agent.call(&list, timeout).unwrap();
    agent.call(&delete, timeout).unwrap();
    let statuses: Vec<_> = waits
        .iter()
        .map(|wait| {
            loop {
                if let Some(answer) = agent.take(wait).unwrap() {
                    break answer.exit_status;
                }
                std::thread::sleep(Duration::from_millis(1));
            }
        })
        .collect();

    assert!(listed.processes.len() > 100, "{}", listed.processes.len());
    assert_eq!(statuses, [137; 100]);
}
