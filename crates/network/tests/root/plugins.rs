// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The CNI plugins that people have.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};

use crate::holder::Holder;
use crate::world::{Guest, HOST4, OUTSIDE4, World, forwarding, ip, serve_tcp};

tests![
    bridge_with_addresses_and_ports,
    bridge_gives_ipv6,
    point_to_point_link_gives_its_routes,
    macvlan_has_its_own_address_on_the_wire,
    machine_with_two_networks_is_on_both,
    killed_machine_gives_its_address_back,
    host_goes_on_forwarding_for_another_network,
    two_machines_of_one_bridge_reach_each_other,
];

/// They take a kernel with ipvlan.
pub const IPVLAN_TESTS: &[crate::Test] = &[(
    "ipvlan_shares_the_address_on_the_wire",
    ipvlan_shares_the_address_on_the_wire,
)];

const PLUGINS: &str = "/usr/lib/cni";

pub fn lacks() -> Option<&'static str> {
    let all = ["bridge", "host-local", "ptp", "macvlan", "portmap"];
    let has_all = all
        .iter()
        .all(|plugin| Path::new(PLUGINS).join(plugin).exists());
    (!has_all).then_some("CNI plugins are missing (package containernetworking-plugins)")
}

pub fn lacks_ipvlan() -> Option<&'static str> {
    let probe = "unshare -n sh -c 'ip link add a type veth peer name b && ip link add link a i type ipvlan'";
    let works = std::process::Command::new("sh")
        .args(["-c", probe])
        .output()
        .is_ok_and(|output| output.status.success());
    (!works).then_some("the kernel has no ipvlan")
}

/// Configures a network of these plugins, with addresses from a directory of the test's own.
fn network(world: &World, name: &str, subnets: &[&str], mut plugins: Value) {
    let ranges: Vec<Value> = subnets
        .iter()
        .map(|subnet| json!([{ "subnet": subnet }]))
        .collect();
    let routes: Vec<Value> = subnets
        .iter()
        .map(|subnet| json!({"dst": if subnet.contains(':') { "::/0" } else { "0.0.0.0/0" }}))
        .collect();
    plugins[0]["ipam"] = json!({
        "type": "host-local", "ranges": ranges, "routes": routes, "dataDir": world.path("leases"),
    });
    world.configure(name, &plugins);
}

fn bridge(world: &World, name: &str, subnets: &[&str]) {
    let plugins = json!([
        {"type": "bridge", "bridge": format!("br-{name}"), "isGateway": true, "ipMasq": true},
        {"type": "portmap", "capabilities": {"portMappings": true}},
    ]);
    network(world, name, subnets, plugins);
}

/// The addresses that are given to somebody.
fn leases(world: &World, name: &str) -> Vec<String> {
    let mut leases: Vec<String> = fs::read_dir(world.path("leases").join(name))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.starts_with("10."))
        .collect();
    leases.sort();
    leases
}

fn bridge_with_addresses_and_ports() {
    let world = World::new();
    bridge(&world, "web", &["10.20.0.0/24"]);
    let outside = world.outside.serve_tcp("0.0.0.0", 0);

    let attachment = world.attach("vm", &["web"], &["8080:80"]);
    let guest = Guest::start(&attachment);
    guest.space.serve_tcp("0.0.0.0", 80);

    let interface = &attachment.interfaces()[0];
    assert_eq!(interface.addresses, ["10.20.0.2/24".parse().unwrap()]);
    assert_eq!(guest.space.ask_tcp(OUTSIDE4, outside), HOST4.parse().ok());
    assert!(world.outside.ask_tcp(HOST4, 8080).is_some());
    assert!(std::net::TcpListener::bind("0.0.0.0:8080").is_err());
    assert_eq!(leases(&world, "web"), ["10.20.0.2"]);
    guest.stop();
    attachment.detach().unwrap();
    assert!(leases(&world, "web").is_empty());
    assert!(ip("-o link show master br-web").is_empty());
}

fn bridge_gives_ipv6() {
    let world = World::new();
    bridge(&world, "web", &["10.20.0.0/24", "fd20::/64"]);
    let attachment = world.attach("vm", &["web"], &[]);
    let guest = Guest::start(&attachment);
    let port = serve_tcp("::", 0);

    assert_eq!(guest.addresses, ["10.20.0.2", "fd20::2"]);
    assert_eq!(guest.space.ask_tcp("fd20::1", port), "fd20::2".parse().ok());
}

fn point_to_point_link_gives_its_routes() {
    let world = World::new();
    network(
        &world,
        "link",
        &["10.21.0.0/24"],
        json!([{"type": "ptp", "ipMasq": true, "mtu": 1400}]),
    );
    let outside = world.outside.serve_tcp("0.0.0.0", 0);
    // The plugin leaves switching it on to others.
    crate::world::set_sysctl("ipv4/ip_forward", "1");

    let attachment = world.attach("vm", &["link"], &[]);
    let guest = Guest::start(&attachment);

    attachment.check().unwrap();
    assert_eq!(attachment.interfaces()[0].mtu, 1400);
    // All goes through the gateway, so the address has no neighbours.
    assert_eq!(guest.addresses, ["10.21.0.2"]);
    assert_eq!(attachment.interfaces()[0].addresses[0].prefix_len(), 32);
    assert_eq!(guest.space.ask_tcp(OUTSIDE4, outside), HOST4.parse().ok());
}

fn macvlan_has_its_own_address_on_the_wire() {
    let world = World::new();
    let plugins = json!([{"type": "macvlan", "master": "up0", "mode": "bridge"}]);
    network(&world, "wire", &["10.22.0.0/24"], plugins);
    world.outside.ip("addr add 10.22.0.1/24 dev eth0");
    let port = world.outside.serve_tcp("0.0.0.0", 0);

    let attachment = world.attach("vm", &["wire"], &[]);
    let guest = Guest::start(&attachment);

    assert_eq!(
        guest.space.ask_tcp("10.22.0.1", port),
        "10.22.0.2".parse().ok()
    );
    let seen = world.outside.ip("neigh show 10.22.0.2");
    assert!(
        seen.contains(&attachment.interfaces()[0].mac.to_string()),
        "{seen}"
    );
}

fn ipvlan_shares_the_address_on_the_wire() {
    let world = World::new();
    let plugins = json!([{"type": "ipvlan", "master": "up0", "mode": "l2"}]);
    network(&world, "wire", &["10.22.0.0/24"], plugins);
    world.outside.ip("addr add 10.22.0.1/24 dev eth0");
    let port = world.outside.serve_tcp("0.0.0.0", 0);

    let attachment = world.attach("vm", &["wire"], &[]);
    let guest = Guest::start(&attachment);

    assert_eq!(
        guest.space.ask_tcp("10.22.0.1", port),
        "10.22.0.2".parse().ok()
    );
}

fn machine_with_two_networks_is_on_both() {
    let world = World::new();
    bridge(&world, "one", &["10.20.0.0/24"]);
    bridge(&world, "other", &["10.30.0.0/24"]);
    let port = serve_tcp("0.0.0.0", 0);

    let attachment = world.attach("vm", &["one", "other", "host-nat"], &[]);
    let guest = Guest::start(&attachment);

    let names: Vec<_> = attachment
        .interfaces()
        .iter()
        .map(|interface| interface.name.as_str())
        .collect();
    assert_eq!(names, ["eth0", "eth1", "eth2"]);
    assert_eq!(
        guest.space.ask_tcp("10.20.0.1", port),
        "10.20.0.2".parse().ok()
    );
    assert_eq!(
        guest.space.ask_tcp("10.30.0.1", port),
        "10.30.0.2".parse().ok()
    );
}

fn killed_machine_gives_its_address_back() {
    let world = World::new();
    bridge(&world, "web", &["10.20.0.0/24"]);
    Holder::start(&world, "vm", "web", &["8080:80"]).kill();
    let left = leases(&world, "web");

    coracle_network::remove_leftovers("vm", &world.config).unwrap();

    assert_eq!(left, ["10.20.0.2"]);
    assert!(leases(&world, "web").is_empty());
    assert!(ip("-o link show master br-web").is_empty());
}

/// Its plugins found that the host forwards.
fn host_goes_on_forwarding_for_another_network() {
    let world = World::new();
    let plugins = json!([{"type": "bridge", "bridge": "br-web", "isGateway": true}]);
    network(&world, "web", &["10.20.0.0/24"], plugins);
    let first = world.attach("first", &["host-nat"], &[]);
    let second = world.attach("second", &["web"], &[]);

    first.detach().unwrap();
    let with_the_second = forwarding();
    second.detach().unwrap();

    assert_eq!(with_the_second, ["1", "1"]);
    assert_eq!(forwarding(), ["0", "0"]);
}

fn two_machines_of_one_bridge_reach_each_other() {
    let world = World::new();
    bridge(&world, "web", &["10.20.0.0/24"]);
    let one = world.attach("one", &["web"], &[]);
    let other = world.attach("other", &["web"], &[]);
    let (one, other) = (Guest::start(&one), Guest::start(&other));
    let port = other.space.serve_tcp("0.0.0.0", 0);

    assert_eq!(
        one.space.ask_tcp(other.ipv4(), port),
        one.ipv4().parse().ok()
    );
}
