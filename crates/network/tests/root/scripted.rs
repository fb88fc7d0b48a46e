// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! CNI plugins that do what a test tells them: mostly wrong.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, Instant};

use coracle_network::{
    Addressing, NetworkError, acknowledge, give_up, leftovers, remove_leftovers, sweep, unheard,
};
use serde_json::{Value, json};

use crate::holder::Holder;
use crate::world::{
    PATIENCE, Space, World, forwarding, frames_for_the_guest, our_tables, run, set_sysctl,
};

tests![
    plugins_run_in_order_and_back,
    plugin_is_told_what_the_specification_says,
    address_that_is_only_said_is_the_guests,
    nobody_speaks_beside_the_guest,
    plugin_that_complains_is_quoted,
    plugin_that_fails_without_a_word_is_told,
    plugin_that_is_killed_is_told,
    plugin_that_hangs_is_killed_at_its_deadline,
    plugin_that_nobody_waits_for_any_more_is_killed_and_remembered,
    plugin_that_prints_garbage_is_told,
    plugin_that_prints_without_end_is_killed,
    plugin_that_complains_without_end_is_cut,
    plugin_that_makes_nothing_is_told,
    plugin_that_is_missing_is_told,
    plugin_that_is_missing_leaves_nothing_to_undo,
    plugin_that_is_no_program_is_told,
    network_that_is_missing_is_told_with_those_there_are,
    interface_of_an_unknown_kind_is_refused_by_name,
    failed_chain_is_taken_down_whole,
    what_could_not_be_removed_stays_remembered,
    what_cannot_be_removed_is_told_until_it_is_heard_and_can_be_given_up,
    host_forwards_for_no_machine_that_is_only_remembered,
    plugin_that_is_gone_with_its_configuration_is_given_up,
    what_is_left_is_told_though_what_is_shared_cannot_be_removed,
    killed_machine_is_taken_down_by_its_record,
    capabilities_are_given_to_those_that_have_them,
    address_that_no_plugin_can_give_is_refused,
    attached_machine_is_checked,
];

/// Makes a veth pair and says so; answers other commands with nothing.
const WORKS: &str = r#"
if [ "$CNI_COMMAND" = ADD ]; then
  nsenter --net="$CNI_NETNS" ip link add "$CNI_IFNAME" type veth peer name peer
  echo '{"cniVersion":"1.0.0","interfaces":[{"name":"'"$CNI_IFNAME"'","sandbox":"'"$CNI_NETNS"'"}],"ips":[{"address":"10.1.2.3/24","interface":0}]}'
fi"#;

/// Passes on what it is given.
const PASSES_ON: &str = r#"[ "$CNI_COMMAND" = ADD ] && printf '{"cniVersion":"1.0.0"}'; exit 0"#;

/// Writes plugins and a network `net` that has them, in this order. Each logs what it is asked, and its input.
fn network(world: &mut World, plugins: &[(&str, &str)]) {
    let directory = world.path("plugins");
    fs::create_dir_all(&directory).unwrap();
    for (name, script) in plugins {
        let path = directory.join(name);
        let log = world.path("log");
        let (log, inputs) = (log.display(), world.path("input").display().to_string());
        let script = format!(
            "#!/bin/sh\ncat > {inputs}.{name}.$CNI_COMMAND\necho $CNI_COMMAND {name} >> {log}\n{script}\n"
        );
        fs::write(&path, script).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    }
    let list: Vec<Value> = plugins
        .iter()
        .map(|(name, _)| json!({"type": name, "capabilities": {"ips": *name == "second", "portMappings": *name == "second"}}))
        .collect();
    world.configure("net", &list.into());
    world.config.cni_plugins = vec![directory];
    world.config.cni_deadline = Duration::from_secs(20);
}

fn log(world: &World) -> Vec<String> {
    let text = fs::read_to_string(world.path("log")).unwrap_or_default();
    text.lines().map(str::to_owned).collect()
}

fn input(world: &World, plugin: &str, command: &str) -> Value {
    let path = world.path(&format!("input.{plugin}.{command}"));
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

fn refusal_of(script: &str) -> (World, String) {
    let mut world = World::new();
    network(&mut world, &[("first", script)]);
    let error = world.refusal("vm", &["net"], &[]).to_string();
    (world, error)
}

fn plugins_run_in_order_and_back() {
    let mut world = World::new();
    network(&mut world, &[("first", WORKS), ("second", PASSES_ON)]);

    let attachment = world.attach("vm", &["net"], &[]);
    assert_eq!(attachment.interfaces()[0].name, "eth0");
    attachment.detach().unwrap();

    assert_eq!(
        log(&world),
        ["ADD first", "ADD second", "DEL second", "DEL first"]
    );
    assert!(world.remembered().is_empty());
}

fn plugin_is_told_what_the_specification_says() {
    let mut world = World::new();
    let script = format!(
        "{WORKS}\nenv | grep ^CNI_ | sort > {}.$CNI_COMMAND",
        world.path("environment").display()
    );
    network(&mut world, &[("first", &script), ("second", PASSES_ON)]);

    world.attach("vm", &["none", "net"], &[]).detach().unwrap();

    let environment =
        |command: &str| fs::read_to_string(world.path(&format!("environment.{command}"))).unwrap();
    let add = environment("ADD");
    assert!(
        add.contains("CNI_COMMAND=ADD\nCNI_CONTAINERID=vm\nCNI_IFNAME=eth1\n"),
        "{add}"
    );
    assert!(
        add.contains(&format!("CNI_NETNS=/proc/{}/fd/", std::process::id())),
        "{add}"
    );
    assert!(
        add.contains(&format!(
            "CNI_PATH={}",
            world.config.cni_plugins[0].display()
        )),
        "{add}"
    );
    assert!(environment("DEL").contains("CNI_NETNS=/proc/"));
    assert_eq!(
        input(&world, "first", "ADD"),
        json!({"cniVersion": "1.0.0", "name": "net", "type": "first"})
    );
    assert_eq!(
        input(&world, "second", "ADD")["prevResult"]["ips"][0]["address"],
        "10.1.2.3/24"
    );
    assert_eq!(
        input(&world, "first", "DEL")["prevResult"],
        json!({"cniVersion": "1.0.0"})
    );
}

fn address_that_is_only_said_is_the_guests() {
    let mut world = World::new();
    network(&mut world, &[("first", WORKS)]);

    let attachment = world.attach("vm", &["net"], &[]);

    assert_eq!(
        attachment.interfaces()[0].addresses,
        ["10.1.2.3/24".parse().unwrap()]
    );
}

/// Neither to the guest nor to its network: a bridge that allows one Ethernet address a port would shut it.
fn nobody_speaks_beside_the_guest() {
    let mut world = World::new();
    let seen = Space::new();
    let peer = format!(
        r#"
if [ "$CNI_COMMAND" = ADD ]; then
  nsenter --net="$CNI_NETNS" ip link add "$CNI_IFNAME" type veth peer name peer netns {}
  nsenter --net={} ip link set peer up
  echo '{{"cniVersion":"1.0.0","interfaces":[{{"name":"'"$CNI_IFNAME"'","sandbox":"'"$CNI_NETNS"'"}}]}}'
fi"#,
        seen.path(),
        seen.path()
    );
    network(&mut world, &[("first", &peer)]);
    seen.within(|| set_sysctl("ipv6/conf/default/disable_ipv6", "1"));

    let attachment = world.attach("vm", &["net"], &[]);
    // Long enough for duplicate address detection.
    std::thread::sleep(Duration::from_millis(2500));

    let wire = fs::File::from(attachment.interfaces()[0].tap.try_clone().unwrap());
    let frames = frames_for_the_guest(&wire);
    assert!(frames.is_empty(), "{frames:?}");
    let received = seen.within(|| {
        run("cat", "/proc/thread-self/net/dev")
            .lines()
            .find_map(|line| line.trim().strip_prefix("peer:").map(str::to_owned))
            .unwrap()
    });
    assert_eq!(received.split_whitespace().nth(1), Some("0"), "{received}");
}

fn plugin_that_complains_is_quoted() {
    let (_, error) = refusal_of(
        r#"[ $CNI_COMMAND = DEL ] || { echo '{"cniVersion":"1.0.0","code":7,"msg":"no bridge","details":"cni0"}'; exit 1; }"#,
    );

    assert_eq!(
        error,
        r#"CNI plugin "first" of network "net" failed to ADD: no bridge (code 7; cni0)"#
    );
}

fn plugin_that_fails_without_a_word_is_told() {
    let (_, error) = refusal_of("echo oh dear >&2; [ $CNI_COMMAND = DEL ]");

    assert_eq!(
        error,
        r#"CNI plugin "first" of network "net" failed to ADD: exit status: 1: oh dear"#
    );
}

fn plugin_that_is_killed_is_told() {
    let (_, error) = refusal_of("[ $CNI_COMMAND = DEL ] || kill -9 $$");

    assert!(error.ends_with("signal: 9 (SIGKILL)"), "{error}");
}

fn plugin_that_hangs_is_killed_at_its_deadline() {
    let mut world = World::new();
    let pid = world.path("pid");
    network(
        &mut world,
        &[(
            "first",
            &format!(
                "[ $CNI_COMMAND = DEL ] || {{ sleep 1000 & echo $! > {}; wait; }}",
                pid.display()
            ),
        )],
    );
    // Time enough to tell of its child.
    world.config.cni_deadline = Duration::from_secs(2);
    let started = Instant::now();

    let error = world.refusal("vm", &["net"], &[]);

    assert!(
        matches!(error, NetworkError::PluginTimeout { .. }),
        "{error}"
    );
    assert!(started.elapsed() < Duration::from_secs(60));
    // What it started dies with it.
    let child = fs::read_to_string(pid).unwrap();
    let state = || fs::read_to_string(format!("/proc/{}/stat", child.trim())).unwrap_or_default();
    let is_dead = |state: &str| state.is_empty() || state.contains(") Z ");
    let deadline = Instant::now() + PATIENCE;
    while !is_dead(&state()) {
        assert!(Instant::now() < deadline, "{}", state());
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn plugin_that_nobody_waits_for_any_more_is_killed_and_remembered() {
    let mut world = World::new();
    let (begun, added) = (world.path("begun"), world.path("added"));
    let script = format!(
        "[ $CNI_COMMAND = DEL ] || {{ (sleep 2; touch {}) & touch {}; wait; }}",
        added.display(),
        begun.display()
    );
    network(&mut world, &[("first", &script), ("second", WORKS)]);
    let (cancel, canceller) = io::pipe().unwrap();
    world.cancel = Some(cancel);
    let waiting = std::thread::spawn(move || {
        while !begun.exists() {
            std::thread::sleep(Duration::from_millis(10));
        }
        drop(canceller);
    });

    let error = world.refusal("vm", &["net"], &[]);

    waiting.join().unwrap();
    assert!(matches!(error, NetworkError::Cancelled { .. }), "{error}");
    assert_eq!(log(&world), ["ADD first"]);
    assert_eq!(leftovers(&world.config).unwrap(), ["vm"]);
    remove_leftovers("vm", &world.config).unwrap();
    assert_eq!(log(&world), ["ADD first", "DEL second", "DEL first"]);
    // What it started is dead with it: nothing comes after its DEL.
    std::thread::sleep(Duration::from_millis(2500));
    assert!(!added.exists());
}

fn plugin_that_prints_garbage_is_told() {
    let (_, error) = refusal_of("echo hello; exit 0");

    assert!(
        error.contains("gave no valid result of ADD") && error.contains("hello"),
        "{error}"
    );
}

fn plugin_that_prints_without_end_is_killed() {
    let (_, error) = refusal_of("[ $CNI_COMMAND = DEL ] || head -c 100000000 /dev/zero");

    assert!(error.contains("it is longer than 1048576 bytes"), "{error}");
}

fn plugin_that_complains_without_end_is_cut() {
    let (_, error) = refusal_of("head -c 100000000 /dev/zero | tr '\\0' x >&2; exit 1");

    assert!(error.len() < 1000, "{} bytes", error.len());
}

fn plugin_that_makes_nothing_is_told() {
    let (world, error) = refusal_of(PASSES_ON);

    assert_eq!(error, r#"the plugins of network "net" made no interface"#);
    assert_eq!(log(&world), ["ADD first", "DEL first"]);
}

fn plugin_that_is_missing_is_told() {
    let mut world = World::new();
    network(&mut world, &[("first", WORKS)]);
    fs::remove_file(world.path("plugins/first")).unwrap();
    world.configure("packaged", &json!([{"type": "macvlan"}]));

    let [other, packaged] =
        ["net", "packaged"].map(|network| world.refusal("vm", &[network], &[]).to_string());
    fs::remove_dir_all(world.path("plugins")).unwrap();
    let without_directory = world.refusal("vm", &["net"], &[]).to_string();

    let plugins = world.path("plugins").display().to_string();
    let package = ": install the package containernetworking-plugins";
    assert_eq!(
        other,
        format!(r#"CNI plugin "first" of network "net" is not in {plugins}"#)
    );
    assert_eq!(
        packaged,
        format!(r#"CNI plugin "macvlan" of network "packaged" is not in {plugins}{package}"#)
    );
    assert_eq!(without_directory, other + package);
}

fn plugin_that_is_missing_leaves_nothing_to_undo() {
    let mut world = World::new();
    network(&mut world, &[("first", WORKS), ("second", PASSES_ON)]);
    fs::remove_file(world.path("plugins/second")).unwrap();

    let error = world.refusal("vm", &["net"], &[]);

    assert!(
        matches!(error, NetworkError::PluginMissing { .. }),
        "{error}"
    );
    assert_eq!(log(&world), [""; 0]);
    assert!(world.remembered().is_empty());
}

fn plugin_that_is_no_program_is_told() {
    let mut world = World::new();
    network(&mut world, &[("first", WORKS)]);
    fs::write(world.path("plugins/first"), "#!/nonexistent\n").unwrap();

    let error = world.refusal("vm", &["net"], &[]).to_string();

    assert_eq!(
        error,
        r#"CNI plugin "first" of network "net" cannot be started"#
    );
    assert!(world.remembered().is_empty());
}

fn network_that_is_missing_is_told_with_those_there_are() {
    let mut world = World::new();
    network(&mut world, &[("first", WORKS)]);

    let error = world.refusal("vm", &["other"], &[]).to_string();

    assert!(
        error.starts_with(r#"no CNI network "other" is configured"#)
            && error.ends_with(
                ", only net; other networks are: none, host-nat, bridge:BRIDGE, tap:INTERFACE"
            ),
        "{error}"
    );
    assert!(world.remembered().is_empty());
}

fn interface_of_an_unknown_kind_is_refused_by_name() {
    let (world, error) = refusal_of(
        r#"[ $CNI_COMMAND = ADD ] && nsenter --net="$CNI_NETNS" ip link add eth0 type bridge && echo '{"cniVersion":"1.0.0"}'; exit 0"#,
    );

    assert!(
        error.contains(r#"interface eth0 of network "net" is of kind "bridge""#),
        "{error}"
    );
    assert_eq!(log(&world), ["ADD first", "DEL first"]);
}

fn failed_chain_is_taken_down_whole() {
    let mut world = World::new();
    network(
        &mut world,
        &[
            ("first", WORKS),
            ("second", "[ $CNI_COMMAND = DEL ]"),
            ("third", PASSES_ON),
        ],
    );

    let error = world.refusal("vm", &["net"], &[]);

    assert!(
        matches!(error, NetworkError::PluginFailed { .. }),
        "{error}"
    );
    assert_eq!(
        log(&world),
        [
            "ADD first",
            "ADD second",
            "DEL third",
            "DEL second",
            "DEL first"
        ]
    );
    assert!(world.remembered().is_empty());
}

fn what_could_not_be_removed_stays_remembered() {
    let mut world = World::new();
    network(
        &mut world,
        &[
            ("first", WORKS),
            ("second", "[ $CNI_COMMAND = ADD ] && echo '{}'"),
        ],
    );
    let attachment = world.attach("vm", &["net"], &[]);

    let error = attachment.detach().unwrap_err();
    let remembered = world.remembered();
    network(&mut world, &[("first", WORKS), ("second", PASSES_ON)]);
    remove_leftovers("vm", &world.config).unwrap();

    assert!(
        matches!(error, NetworkError::PluginFailed { command: "DEL", .. }),
        "{error}"
    );
    assert_eq!(remembered, ["vm"]);
    // The others were run all the same.
    assert_eq!(
        log(&world)
            .iter()
            .filter(|line| *line == "DEL first")
            .count(),
        2
    );
    assert!(world.remembered().is_empty());
}

fn what_cannot_be_removed_is_told_until_it_is_heard_and_can_be_given_up() {
    let mut world = World::new();
    network(&mut world, &[("first", "exit 1")]);
    let refusal = world.refusal("vm", &["net"], &[]);

    // Nobody has tried yet: there is nothing to be heard.
    acknowledge("vm", &world.config).unwrap();
    let untried = unheard("vm", &world.config).unwrap();
    let told = [(); 2].map(|()| {
        let error = remove_leftovers("vm", &world.config).unwrap_err();
        (error, unheard("vm", &world.config).unwrap())
    });
    acknowledge("vm", &world.config).unwrap();
    let again = remove_leftovers("vm", &world.config).unwrap_err();
    let heard = unheard("vm", &world.config).unwrap();
    let remembered = world.remembered();
    let given_up = give_up("vm", &world.config).unwrap();

    assert!(
        matches!(refusal, NetworkError::PluginFailed { command: "ADD", .. }),
        "{refusal}"
    );
    for (error, unheard) in told {
        assert!(matches!(error, NetworkError::StillLeft { .. }), "{error}");
        let it = unheard.unwrap();
        assert!(!it.is_given_up);
        assert!(it.reason.contains("\"first\""), "{}", it.reason);
    }
    assert!(matches!(again, NetworkError::StillLeft { .. }), "{again}");
    assert_eq!((untried, heard), (None, None));
    assert_eq!(remembered, ["vm"]);
    assert!(matches!(
        given_up,
        Some(NetworkError::PluginFailed { command: "DEL", .. })
    ));
    assert!(world.remembered().is_empty());
}

fn host_forwards_for_no_machine_that_is_only_remembered() {
    let mut world = World::new();
    network(&mut world, &[("first", "exit 1")]);
    let attachment = world.attach("web", &["host-nat"], &[]);
    world.refusal("vm", &["net"], &[]);

    attachment.detach().unwrap();

    assert_eq!(world.remembered(), ["vm"]);
    assert_eq!(
        (forwarding(), our_tables().len()),
        (["0", "0"].map(str::to_owned), 0)
    );
}

fn plugin_that_is_gone_with_its_configuration_is_given_up() {
    let mut world = World::new();
    network(&mut world, &[("first", WORKS), ("second", PASSES_ON)]);
    Holder::start(&world, "vm", "net", &[]).kill();
    fs::remove_file(world.path("plugins/second")).unwrap();

    let while_configured = remove_leftovers("vm", &world.config).unwrap_err();
    fs::remove_file(world.configuration("net")).unwrap();
    acknowledge("vm", &world.config).unwrap();
    let given_up = remove_leftovers("vm", &world.config).unwrap_err();
    // That nothing will come of it is news.
    let unheard = unheard("vm", &world.config).unwrap();
    acknowledge("vm", &world.config).unwrap();

    assert!(
        matches!(reason(given_up), NetworkError::PluginGone { .. }),
        "{unheard:?}"
    );
    assert!(
        matches!(reason(while_configured), NetworkError::PluginMissing { .. }),
        "{unheard:?}"
    );
    assert!(unheard.unwrap().is_given_up);
    assert!(world.remembered().is_empty());
}

/// Why it cannot be removed.
fn reason(error: NetworkError) -> NetworkError {
    match error {
        NetworkError::StillLeft { source, .. } => *source,
        error => panic!("{error}"),
    }
}

fn what_is_left_is_told_though_what_is_shared_cannot_be_removed() {
    let mut world = World::new();
    network(&mut world, &[("first", WORKS)]);
    Holder::start(&world, "vm", "net", &[]).kill();
    fs::remove_file(world.path("plugins/first")).unwrap();
    fs::remove_file(world.configuration("net")).unwrap();
    let routed = world.attach("web", &["host-nat"], &[]);
    let shared = world.config.state.join("forwarding");
    // What is mounted on cannot be removed.
    rustix::mount::mount_bind(&shared, &shared).unwrap();

    let at_its_end = routed.detach();
    let later = remove_leftovers("vm", &world.config);
    let all = sweep(&world.config);
    rustix::mount::unmount(&shared, rustix::mount::UnmountFlags::DETACH).unwrap();

    let at_its_end = at_its_end.unwrap_err();
    assert!(
        matches!(at_its_end, NetworkError::State { .. }),
        "{at_its_end}"
    );
    for error in [later.unwrap_err(), all.unwrap_err()] {
        assert!(matches!(reason(error), NetworkError::PluginGone { .. }));
    }
}

fn killed_machine_is_taken_down_by_its_record() {
    let mut world = World::new();
    network(&mut world, &[("first", WORKS), ("second", PASSES_ON)]);
    Holder::start(&world, "vm", "net", &[]).kill();
    // Whatever becomes of the configuration.
    fs::remove_file(world.configuration("net")).unwrap();

    remove_leftovers("vm", &world.config).unwrap();

    assert_eq!(
        log(&world),
        ["ADD first", "ADD second", "DEL second", "DEL first"]
    );
    assert_eq!(
        input(&world, "first", "DEL")["prevResult"],
        json!({"cniVersion": "1.0.0"})
    );
}

fn capabilities_are_given_to_those_that_have_them() {
    let mut world = World::new();
    network(&mut world, &[("first", WORKS), ("second", PASSES_ON)]);
    let addressing = Addressing {
        addresses: vec!["10.1.2.3/24".parse().unwrap()],
        ..Addressing::default()
    };

    let _attachment = world
        .try_attach(
            "vm",
            &["net"],
            &["127.0.0.1:8080:80", "8081:81/udp"],
            &addressing,
        )
        .unwrap();

    assert_eq!(input(&world, "first", "ADD").get("runtimeConfig"), None);
    assert_eq!(
        input(&world, "second", "ADD")["runtimeConfig"],
        json!({"ips": ["10.1.2.3/24"], "portMappings": [
            {"hostPort": 8080, "containerPort": 80, "protocol": "tcp", "hostIP": "127.0.0.1"},
            {"hostPort": 8081, "containerPort": 81, "protocol": "udp"},
        ]})
    );
}

fn address_that_no_plugin_can_give_is_refused() {
    let mut world = World::new();
    network(&mut world, &[("first", WORKS)]);
    let addressing = Addressing {
        addresses: vec!["10.1.2.3/24".parse().unwrap()],
        ..Addressing::default()
    };

    let errors = [
        world
            .try_attach("vm", &["net"], &[], &addressing)
            .unwrap_err(),
        world.refusal("vm", &["net"], &["80:80"]),
    ];

    assert!(
        matches!(errors[0], NetworkError::BadAddress { .. }),
        "{}",
        errors[0]
    );
    assert!(
        matches!(errors[1], NetworkError::CannotPublish { .. }),
        "{}",
        errors[1]
    );
}

fn attached_machine_is_checked() {
    let mut world = World::new();
    network(
        &mut world,
        &[
            ("first", WORKS),
            ("second", "[ $CNI_COMMAND = CHECK ] && exit 1; echo '{}'"),
        ],
    );
    let attachment = world.attach("vm", &["net"], &[]);

    let error = attachment.check().unwrap_err();

    assert!(
        matches!(
            error,
            NetworkError::PluginFailed {
                command: "CHECK",
                ..
            }
        ),
        "{error}"
    );
    assert_eq!(input(&world, "first", "CHECK")["prevResult"], json!({}));
}
