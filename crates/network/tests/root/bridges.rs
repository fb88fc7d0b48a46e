// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Networks that people with VMs have already.

use std::os::fd::AsFd;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use coracle_network::{Addressing, NetworkError};

use crate::holder::Holder;
use crate::world::{Guest, World, has_program, ip, links_like, run, wait_for_carrier};

tests![
    port_of_a_bridge_reaches_its_other_ports,
    port_of_a_bridge_leaves_the_bridges_address_alone,
    port_of_a_bridge_goes_with_its_machine,
    bridge_that_is_none_is_refused,
    tap_that_exists_is_used,
    tap_that_cannot_be_used_is_told_why,
    further_interfaces_have_later_default_routes,
];

/// They take Open vSwitch's programs.
pub const OVS_TESTS: &[crate::Test] = &[
    (
        "port_of_an_ovs_bridge_goes_with_its_machine",
        port_of_an_ovs_bridge_goes_with_its_machine,
    ),
    (
        "killed_machine_leaves_an_ovs_bridge",
        killed_machine_leaves_an_ovs_bridge,
    ),
];

pub fn lacks_ovs() -> Option<&'static str> {
    let programs = ["ovs-vsctl", "ovsdb-tool", "ovsdb-server", "ovs-vswitchd"];
    let has_all = programs.iter().all(|program| has_program(program));
    (!has_all).then_some("Open vSwitch is missing (package openvswitch-switch)")
}

/// Where this test's own daemons and `ovs-vsctl` meet.
pub const OVS_DIRECTORY: &str = "OVS_RUNDIR";

/// Open vSwitch in this thread's network namespace, with the datapath that needs no kernel module.
struct OpenVSwitch(Vec<Child>);

impl OpenVSwitch {
    fn start() -> Self {
        let directory = PathBuf::from(std::env::var(OVS_DIRECTORY).unwrap());
        let [database, socket] =
            ["conf.db", "db.sock"].map(|name| directory.join(name).display().to_string());
        let _ = std::fs::remove_file(&database);
        run(
            "ovsdb-tool",
            &format!("create {database} /usr/share/openvswitch/vswitch.ovsschema"),
        );
        let start = |program: &str, arguments: &[&str]| {
            let mut command = Command::new(program);
            command
                .args(arguments)
                .stdout(Stdio::null())
                .stderr(Stdio::null());
            command.spawn().unwrap()
        };
        let mut daemons = Self(vec![start(
            "ovsdb-server",
            &[&database, &format!("--remote=punix:{socket}")],
        )]);
        run("ovs-vsctl", "--no-wait --retry --timeout=20 init");
        daemons
            .0
            .push(start("ovs-vswitchd", &[&format!("unix:{socket}")]));
        daemons
    }
}

impl Drop for OpenVSwitch {
    fn drop(&mut self) {
        for daemon in self.0.iter_mut().rev() {
            let _ = daemon.kill();
            let _ = daemon.wait();
        }
    }
}

/// A bridge with the outside at one of its ports.
fn bridge(world: &World) {
    ip("link add br0 type bridge");
    ip("link set br0 up");
    ip(&format!(
        "link add port0 type veth peer name eth1 netns {}",
        world.outside.path()
    ));
    ip("link set port0 master br0 up");
    world.outside.ip("addr add 203.0.113.1/24 dev eth1");
    world.outside.ip("link set eth1 up");
    wait_for_carrier("br0");
}

fn static_address() -> Addressing {
    Addressing {
        addresses: vec!["203.0.113.7/24".parse().unwrap()],
        gateways: vec!["203.0.113.1".parse().unwrap()],
        mac: "02:00:00:00:00:07".parse().ok(),
        mtu: None,
    }
}

fn port_of_a_bridge_reaches_its_other_ports() {
    let world = World::new();
    bridge(&world);
    let port = world.outside.serve_tcp("0.0.0.0", 0);

    let attachment = world
        .try_attach("vm", &["bridge:br0"], &[], &static_address())
        .unwrap();

    let guest = Guest::start(&attachment);
    assert_eq!(attachment.routes()[0].gateway, "203.0.113.1".parse().ok());
    assert_eq!(
        guest.space.ask_tcp("203.0.113.1", port),
        "203.0.113.7".parse().ok()
    );
}

fn port_of_a_bridge_leaves_the_bridges_address_alone() {
    let world = World::new();
    bridge(&world);
    // As high as a random address may be, as those of veth links are.
    ip("link set port0 address fe:ff:fe:00:00:01");
    let before = ip("-br link show br0");

    let _attachments: Vec<_> = ["a", "b", "c"]
        .map(|id| world.attach(id, &["bridge:br0"], &[]))
        .into();

    assert_eq!(ip("-br link show br0"), before);
}

fn port_of_a_bridge_goes_with_its_machine() {
    let world = World::new();
    bridge(&world);
    let attachment = world.attach("vm", &["bridge:br0"], &[]);
    assert_eq!(ip("link show master br0").matches("corabr").count(), 1);

    attachment.detach().unwrap();

    assert!(links_like("corabr").is_empty() && world.remembered().is_empty());
}

fn bridge_that_is_none_is_refused() {
    let world = World::new();

    assert_eq!(
        world.refusal("vm", &["bridge:br9"], &[]).to_string(),
        "bridge br9 does not exist"
    );
    assert!(matches!(
        world.refusal("vm", &["bridge:up0"], &[]),
        NetworkError::NotABridge { .. }
    ));
}

fn tap_that_exists_is_used() {
    let world = World::new();
    ip("tuntap add dev vm7 mode tap");
    ip("link set vm7 up mtu 1400");
    ip("addr add 203.0.113.1/24 dev vm7");
    let port = crate::world::serve_tcp("203.0.113.1", 0);

    let attachment = world
        .try_attach("vm", &["tap:vm7"], &[], &static_address())
        .unwrap();

    let guest = Guest::start(&attachment);
    assert_eq!(attachment.interfaces()[0].mtu, 1400);
    assert_eq!(
        guest.space.ask_tcp("203.0.113.1", port),
        "203.0.113.7".parse().ok()
    );
    guest.stop();
    attachment.detach().unwrap();
    assert_eq!(links_like("vm7"), ["vm7"]);
}

fn tap_that_cannot_be_used_is_told_why() {
    let world = World::new();
    ip("tuntap add dev queues mode tap multi_queue");
    ip("tuntap add dev packets mode tun");
    ip("tuntap add dev busy mode tap");
    let _busy = world.attach("first", &["tap:busy"], &[]);

    for (name, reason) in [
        ("queues", "it is made for several queues"),
        ("packets", "it is a tun"),
        ("busy", "another process has it open"),
        ("up0", "it is not a tap, but of kind \"veth\""),
        ("missing", "tap missing does not exist"),
    ] {
        let error = world
            .refusal("vm", &[&format!("tap:{name}")], &[])
            .to_string();
        assert!(error.contains(reason), "{error}");
    }
    assert_eq!(world.remembered(), ["first"]);
}

fn further_interfaces_have_later_default_routes() {
    let world = World::new();
    bridge(&world);
    ip("tuntap add dev vm7 mode tap");

    let attachment = world
        .try_attach(
            "vm",
            &["bridge:br0", "host-nat", "tap:vm7"],
            &[],
            &static_address(),
        )
        .unwrap();

    let names: Vec<_> = attachment
        .interfaces()
        .iter()
        .map(|one| one.name.as_str())
        .collect();
    let metrics: Vec<_> = attachment
        .routes()
        .iter()
        .map(|route| route.metric)
        .collect();
    assert_eq!(names, ["eth0", "eth1", "eth2"]);
    assert_eq!(metrics, [None, Some(100), Some(100)]);
    assert!(
        attachment
            .interfaces()
            .iter()
            .all(|one| rustix::fs::fstat(one.tap.as_fd()).is_ok())
    );
}

fn port_of_an_ovs_bridge_goes_with_its_machine() {
    let world = World::new();
    let _daemons = OpenVSwitch::start();
    run(
        "ovs-vsctl",
        "--timeout=20 add-br ovs0 -- set bridge ovs0 datapath_type=netdev",
    );
    ip("addr add 203.0.113.1/24 dev ovs0");
    ip("link set ovs0 up");
    let port = crate::world::serve_tcp("203.0.113.1", 0);
    let ports = || {
        run("ovs-vsctl", "--timeout=20 list-ports ovs0")
            .lines()
            .count()
    };

    let attachment = world
        .try_attach("vm", &["bridge:ovs0"], &[], &static_address())
        .unwrap();
    let guest = Guest::start(&attachment);
    let answer = guest.space.ask_tcp("203.0.113.1", port);
    let while_running = ports();
    guest.stop();
    attachment.detach().unwrap();

    assert_eq!(answer, "203.0.113.7".parse().ok());
    assert_eq!((while_running, ports()), (1, 0));
}

fn killed_machine_leaves_an_ovs_bridge() {
    let world = World::new();
    let _daemons = OpenVSwitch::start();
    run(
        "ovs-vsctl",
        "--timeout=20 add-br ovs0 -- set bridge ovs0 datapath_type=netdev",
    );
    let ports = || {
        run("ovs-vsctl", "--timeout=20 list-ports ovs0")
            .lines()
            .count()
    };
    Holder::start(&world, "vm", "bridge:ovs0", &[]).kill();
    let after_kill = ports();

    coracle_network::remove_leftovers("vm", &world.config).unwrap();

    assert_eq!((after_kill, ports()), (1, 0));
}
