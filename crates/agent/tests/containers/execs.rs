// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Further processes in containers that run.

use std::fs;
use std::os::unix::fs::symlink;
use std::time::{Duration, Instant};

use coracle_agent::container::ProcessId;
use coracle_agent_api::ErrorKind;
use rustix::fs::{Mode, OFlags, StatVfsMountFlags};
use serde_json::json;

use crate::bundle::{Bundle, Running};
use crate::exec::{Exec, process};
use crate::machine::Machine;

pub const ALL: &[(&str, crate::Case)] = cases![
    exec_has_streams_and_a_status_of_its_own,
    exec_is_in_the_containers_namespaces,
    exec_is_what_its_own_process_says,
    exec_is_in_the_containers_cgroup,
    many_execs_run_at_once,
    exec_by_a_user_with_no_process_to_spare,
    exec_is_signalled_and_deleted_alone,
    exec_ends_with_its_container,
    exec_in_a_container_that_does_not_run_is_refused,
    exec_of_an_id_that_is_taken_is_refused,
    execs_are_bounded,
    exec_of_a_missing_command_leaves_nothing,
    exec_that_fails_at_its_start_is_told_why,
    exec_does_not_wait_for_what_it_leaves_in_the_background,
    processes_are_listed,
    what_is_used_is_counted,
    no_descriptor_leaks_to_an_exec,
    working_directory_of_an_exec_that_is_a_descriptor_is_refused,
    exec_behind_a_link_of_procfs_is_refused,
    maker_of_an_exec_is_out_of_sight,
];

/// A container that does nothing until it is told to end.
pub fn idle(machine: &Machine) -> (Bundle, Running) {
    idle_of(Bundle::new(machine, "sleep 1000"), machine)
}

pub fn idle_of(bundle: Bundle, machine: &Machine) -> (Bundle, Running) {
    let running = bundle.create(machine).unwrap();
    running.start().unwrap();
    (bundle, running)
}

pub fn end(running: Running) {
    running.containers.signal(running.first(), 9, true).unwrap();
    running.finish();
}

fn run(running: &Running, script: &str) -> (u32, String, String) {
    Exec::start(running, "exec", &process(script))
        .unwrap()
        .finish()
}

fn exec_has_streams_and_a_status_of_its_own(machine: &Machine) {
    let (_bundle, running) = idle(machine);
    let exec = Exec::start(&running, "exec", &process("cat; echo err >&2; exit 7")).unwrap();
    std::io::Write::write_all(&mut &exec.stdin, b"in\n").unwrap();

    let outcome = exec.finish();

    end(running);
    assert_eq!(outcome, (7, "in\n".to_owned(), "err\n".to_owned()));
}

fn exec_is_in_the_containers_namespaces(machine: &Machine) {
    let (_bundle, running) = idle(machine);
    let kinds = "cgroup ipc mnt net pid pid_for_children uts";
    let script = format!(
        "for n in {kinds}; do test $(readlink /proc/1/ns/$n) = $(readlink /proc/self/ns/$n) || echo $n; done; hostname; ls /"
    );

    let (status, stdout, stderr) = run(&running, &script);

    end(running);
    assert_eq!(
        (status, stdout.as_str(), stderr.as_str()),
        (0, "vessel\nbin\ndev\nproc\nsys\n", "")
    );
}

fn exec_is_what_its_own_process_says(machine: &Machine) {
    let (_bundle, running) = idle(machine);
    let mut process = process(
        "id -u; id -g; id -G; umask; pwd; echo $HOME; ulimit -Sn; cat /proc/self/oom_score_adj; cat /proc/self/status",
    );
    process["user"] = json!({"uid": 1000, "gid": 100, "additionalGids": [10, 20], "umask": 0o27});
    process["cwd"] = json!("/bin");
    process["env"] = json!(["PATH=/bin", "HOME=/nowhere"]);
    process["rlimits"] = json!([{"type": "RLIMIT_NOFILE", "soft": 100, "hard": 200}]);
    process["oomScoreAdj"] = json!(300);
    process["noNewPrivileges"] = json!(true);
    process["capabilities"] = json!({
        "bounding": ["CAP_CHOWN"], "permitted": ["CAP_CHOWN"], "inheritable": ["CAP_CHOWN"], "ambient": ["CAP_CHOWN"],
    });

    let exec = Exec::start(&running, "exec", &process).unwrap();
    let (_, stdout, _) = exec.finish();

    end(running);
    let start = "1000\n100\n100 10 20\n0027\n/bin\n/nowhere\n100\n300\n";
    assert!(stdout.starts_with(start), "{stdout}");
    for line in [
        "CapBnd:\t0000000000000001",
        "CapEff:\t0000000000000001",
        "NoNewPrivs:\t1",
    ] {
        assert!(stdout.contains(line), "{stdout}");
    }
}

fn exec_is_in_the_containers_cgroup(machine: &Machine) {
    let (_bundle, running) = idle(machine);
    let exec = Exec::start(&running, "exec", &process("sleep 1000")).unwrap();

    let cgroup = fs::read_to_string(format!("/proc/{}/cgroup", exec.pid)).unwrap();

    let id = running.id.clone();
    end(running);
    assert!(
        cgroup.trim_end().ends_with(&format!("/containers/{id}")),
        "{cgroup}"
    );
}

fn many_execs_run_at_once(machine: &Machine) {
    let (_bundle, running) = idle(machine);

    std::thread::scope(|scope| {
        for thread in 0..8 {
            let running = &running;
            scope.spawn(move || {
                for number in 0..8 {
                    let id = format!("{thread}-{number}");
                    let process = process(&format!("echo {id}; exit {thread}"));
                    let outcome = Exec::start(running, &id, &process).unwrap().finish();
                    assert_eq!(outcome, (thread, format!("{id}\n"), String::new()));
                }
            });
        }
    });

    end(running);
}

fn exec_by_a_user_with_no_process_to_spare(machine: &Machine) {
    let (_bundle, running) = idle(machine);
    let mut process = process("");
    process["args"] = json!(["cat", "/proc/self/limits"]);
    process["user"] = json!({"uid": 54321, "gid": 54321});
    process["rlimits"] = json!([{"type": "RLIMIT_NPROC", "soft": 1, "hard": 1}]);

    let (status, stdout, _) = Exec::start(&running, "exec", &process).unwrap().finish();

    end(running);
    assert_eq!(status, 0);
    let limit = stdout
        .lines()
        .find(|line| line.starts_with("Max processes"))
        .unwrap();
    assert_eq!(limit.split_whitespace().nth(2), Some("1"), "{limit}");
}

fn exec_is_signalled_and_deleted_alone(machine: &Machine) {
    let (_bundle, running) = idle(machine);
    let one = Exec::start(&running, "one", &process("sleep 1000")).unwrap();
    let two = Exec::start(&running, "two", &process("sleep 1000")).unwrap();

    running.containers.signal(one.name(), 9, false).unwrap();
    let status = one.wait().exit.status;
    running.containers.delete(one.name()).unwrap();
    running.containers.delete(two.name()).unwrap();
    let gone = running.containers.wait(two.name()).unwrap_err();
    let again = running.containers.delete(two.name());
    let (alive, _, _) = run(&running, "true");

    end(running);
    assert_eq!(status, 137);
    assert_eq!(gone.kind, ErrorKind::NoSuchProcess);
    assert!(again.is_ok());
    assert_eq!(alive, 0);
}

fn exec_ends_with_its_container(machine: &Machine) {
    let (_bundle, running) = idle(machine);
    let started = Exec::start(&running, "started", &process("sleep 1000")).unwrap();
    let waiting = Exec::create(&running, "waiting", &process("sleep 1000")).unwrap();

    running
        .containers
        .signal(running.first(), 9, false)
        .unwrap();

    let statuses = [started.wait().exit.status, waiting.wait().exit.status];
    running.finish();
    assert_eq!(statuses, [137, 137]);
}

fn exec_in_a_container_that_does_not_run_is_refused(machine: &Machine) {
    let bundle = Bundle::new(machine, "true");
    let running = bundle.create(machine).unwrap();
    let attempt = || {
        Exec::create(&running, "exec", &process("true"))
            .err()
            .unwrap()
    };

    let before = attempt();
    running.start().unwrap();
    running.containers.wait(running.first()).unwrap();
    let after = attempt();

    running.finish();
    assert_eq!([before.kind, after.kind], [ErrorKind::WrongState; 2]);
    assert!(after.message.ends_with(" is not running"), "{after}");
}

fn exec_of_an_id_that_is_taken_is_refused(machine: &Machine) {
    let (_bundle, running) = idle(machine);
    let _first = Exec::create(&running, "exec", &process("true")).unwrap();

    let second = Exec::create(&running, "exec", &process("true"))
        .err()
        .unwrap();
    let empty = Exec::create(&running, "", &process("true")).err().unwrap();

    end(running);
    assert_eq!(second.kind, ErrorKind::ProcessExists);
    assert_eq!(empty.kind, ErrorKind::InvalidRequest);
}

fn execs_are_bounded(machine: &Machine) {
    let (_bundle, running) = idle(machine);
    let mut process = process("");
    process["args"] = json!(["true"]);
    let mut made = 0;

    let error = loop {
        let name = made.to_string();
        let id = ProcessId {
            container: &running.id,
            exec: &name,
        };
        let json = process.to_string();
        match running
            .containers
            .execute(id, json.as_bytes(), || Ok(Default::default()))
        {
            Ok(_) => {
                running.containers.start(id).unwrap();
                running.containers.wait(id).unwrap();
                made += 1;
            }
            Err(error) => break error,
        }
    };

    end(running);
    assert_eq!((error.kind, made), (ErrorKind::TooMany, 1024));
}

fn exec_of_a_missing_command_leaves_nothing(machine: &Machine) {
    let (_bundle, running) = idle(machine);
    let mut missing = process("");
    missing["args"] = json!(["fly"]);

    let error = Exec::create(&running, "exec", &missing).err().unwrap();
    // Its id is free again.
    let (status, _, _) = run(&running, "true");

    end(running);
    assert_eq!(error.kind, ErrorKind::CommandNotFound);
    assert_eq!(status, 0);
}

fn exec_that_fails_at_its_start_is_told_why(machine: &Machine) {
    let (bundle, running) = idle(machine);
    let file = bundle.path("rootfs/program");
    fs::write(&file, "no format at all").unwrap();
    fs::set_permissions(&file, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let mut process = process("");
    process["args"] = json!(["/program"]);
    let exec = Exec::create(&running, "exec", &process).unwrap();

    let error = running.containers.start(exec.name()).unwrap_err();
    let (status, _, _) = exec.finish();

    end(running);
    assert_eq!(error.kind, ErrorKind::CommandNotExecutable);
    assert_eq!(status, 126);
}

fn exec_does_not_wait_for_what_it_leaves_in_the_background(machine: &Machine) {
    let (_bundle, running) = idle(machine);
    let script = "(while echo again; do sleep 1; done) & sleep 1000 & echo done; exit 3";
    let exec = Exec::start(&running, "exec", &process(script)).unwrap();
    let begun = Instant::now();

    let (status, stdout, _) = exec.finish();

    let taken = begun.elapsed();
    end(running);
    assert_eq!(status, 3);
    assert!(stdout.contains("done\n"), "{stdout}");
    assert!(taken < Duration::from_secs(60), "{taken:?}");
}

fn processes_are_listed(machine: &Machine) {
    let (_bundle, running) = idle(machine);
    let exec = Exec::start(&running, "exec", &process("exec sleep 1000")).unwrap();

    let processes = running.containers.processes(&running.id).unwrap();

    let (first, further) = (running.pid, exec.pid);
    end(running);
    assert_eq!(processes.len(), 2, "{processes:?}");
    assert!(processes.contains(&(first, 1)), "{processes:?}");
    assert!(
        processes
            .iter()
            .any(|(pid, inside)| *pid == further && *inside > 1)
    );
}

fn what_is_used_is_counted(machine: &Machine) {
    let (_bundle, running) = idle(machine);
    let (status, ..) = run(
        &running,
        "i=0; while test $i -lt 20000; do i=$((i+1)); done",
    );

    let used = running.containers.statistics(&running.id).unwrap();

    end(running);
    assert_eq!(status, 0);
    assert!(used.cpu.usage_microseconds > 0);
    assert_eq!((used.pids.limit, used.memory.limit), (None, None));
}

fn no_descriptor_leaks_to_an_exec(machine: &Machine) {
    let _careless = rustix::fs::open("/", OFlags::RDONLY, Mode::empty()).unwrap();
    let (_bundle, running) = idle(machine);

    let (_, stdout, _) = run(&running, "exec ls /proc/self/fd");

    end(running);
    // The last is the directory that `ls` reads.
    assert_eq!(stdout, "0\n1\n2\n3\n");
}

fn working_directory_of_an_exec_that_is_a_descriptor_is_refused(machine: &Machine) {
    let _careless = rustix::fs::open("/", OFlags::RDONLY, Mode::empty()).unwrap();
    let (_bundle, running) = idle(machine);

    let kinds: Vec<_> = (0..32)
        .map(|descriptor| {
            let mut process = process("true");
            process["cwd"] = json!(format!("/proc/self/fd/{descriptor}"));
            Exec::create(&running, "exec", &process)
                .map_err(|error| error.kind)
                .err()
        })
        .collect();

    end(running);
    assert_eq!(kinds, [Some(ErrorKind::WorkingDirectory); 32]);
}

fn exec_behind_a_link_of_procfs_is_refused(machine: &Machine) {
    let (bundle, running) = idle(machine);
    symlink("/proc/self/exe", bundle.path("rootfs/entry")).unwrap();
    let mut process = process("");
    process["args"] = json!(["/entry", "--list"]);

    let error = Exec::create(&running, "exec", &process).err().unwrap();

    end(running);
    // The process that looks for the command is none of the container's: it is not in its procfs.
    assert_eq!(error.kind, ErrorKind::CommandNotFound);
}

fn maker_of_an_exec_is_out_of_sight(machine: &Machine) {
    let capabilities = json!(["CAP_SYS_PTRACE", "CAP_CHOWN"]);
    let bundle = Bundle::new(machine, "sleep 1000").with(
        "/process/capabilities",
        json!({"bounding": capabilities, "permitted": capabilities, "effective": capabilities}),
    );
    let (_bundle, running) = idle_of(bundle, machine);
    let exec = Exec::create(&running, "exec", &process("true")).unwrap();
    let own = |file: &str| fs::read_to_string(format!("/proc/{}/{file}", exec.pid)).unwrap();

    // At its gate, when others in the container see it first, it is in the container's root with no capabilities.
    let status = own("status");
    let root = fs::read_link(format!("/proc/{}/root", exec.pid)).unwrap();
    let ends_there = fs::exists(format!("/proc/{}/root/bin/busybox", exec.pid)).unwrap();
    let program = rustix::fs::statvfs(format!("/proc/{}/exe", exec.pid)).unwrap();

    end(running);
    assert!(status.contains("CapPrm:\t0000000000000000"), "{status}");
    assert!(status.contains("CapBnd:\t0000000000000000"), "{status}");
    assert_eq!((root.to_str(), ends_there), (Some("/"), true));
    assert!(program.f_flag.contains(StatVfsMountFlags::RDONLY));
}
