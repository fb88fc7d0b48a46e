// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Containers on networks. Each test has a host of its own in a network namespace, with an outside.

use std::fs::File;
use std::net::UdpSocket;
use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread::{self, sleep};
use std::time::{Duration, Instant};

use coracle_tests::{Container, Host, Image};
use rstest::rstest;

static NETS: AtomicU32 = AtomicU32::new(0);

/// A namespace that is the host's, and one that is the world outside, at 192.0.2.1 and 2001:db8::1.
struct World {
    host: String,
    outside: String,
}

impl World {
    fn new() -> Self {
        let number = NETS.fetch_add(1, Ordering::Relaxed);
        let name = |side| format!("{side}{}-{number}", std::process::id());
        let world = Self {
            host: name("host"),
            outside: name("out"),
        };
        let (host, outside) = (&world.host, &world.outside);
        sh("modprobe -a tun veth bridge nf_tables 2>/dev/null; true");
        sh(&format!(
            "ip netns add {host} && ip netns add {outside} &&
             ip -n {host} link set lo up && ip -n {outside} link set lo up &&
             ip -n {host} link add up0 type veth peer name up0 netns {outside} &&
             ip -n {host} addr add 192.0.2.2/24 dev up0 && ip -n {outside} addr add 192.0.2.1/24 dev up0 &&
             ip -n {host} addr add 2001:db8::2/64 dev up0 nodad && ip -n {outside} addr add 2001:db8::1/64 dev up0 nodad &&
             ip -n {host} link set up0 up && ip -n {outside} link set up0 up &&
             ip -n {host} route add default via 192.0.2.1 && ip -n {host} route add default via 2001:db8::1"
        ));
        world
    }

    /// Has a container started on this host.
    fn container<'h>(&self, host: &'h Host) -> Container<'h> {
        host.container(Image::BUSYBOX)
            .under(["ip", "netns", "exec", self.host.as_str()])
    }

    /// Starts a container `web` that says "inside" to whoever connects to the host's port 8080, or, from the host alone
    /// and by IPv6, to its port 8081; it sends back what comes to the host's UDP port 8082.
    fn serve(&self, host: &Host) {
        self.container(host)
            .detached()
            .option("--name", "web")
            .network("host-nat")
            .option("--publish", "8080:80")
            .option("--publish", "[::1]:8081:80")
            .option("--publish", "8082:82/udp")
            .shell_with_tools(
                "tool socat UDP6-LISTEN:82,ipv6only=0,fork PIPE & while :; do echo inside | nc -l -p 80; done",
            )
            .expect(0);
    }

    /// Runs `coracle` on this host.
    fn coracle(&self, host: &Host, words: &[&str]) -> coracle_tests::Finished {
        host.run_under(["ip", "netns", "exec", &self.host], words)
    }

    fn on_the_host(&self, script: &str) -> String {
        sh(&format!(
            "timeout 60 ip netns exec {} sh -c '{script}'",
            self.host
        ))
    }

    /// Names of the host's interfaces.
    fn links(&self) -> Vec<String> {
        let listed = self.on_the_host("ip -br link");
        let name = |line: &str| line.split([' ', '@']).next().unwrap_or_default().to_owned();
        let mut names: Vec<_> = listed.lines().map(name).collect();
        names.sort();
        names
    }

    fn outside(&self, script: &str) -> String {
        sh(&format!(
            "timeout 60 ip netns exec {} sh -c '{script}'",
            self.outside
        ))
    }

    /// Answers those who ask 192.0.2.1 for names: `name` is at 192.0.2.1, and there is no other. It ends with the test's
    /// process.
    fn serve_names(&self, name: &'static str) {
        let outside = File::open(format!("/run/netns/{}", self.outside)).unwrap();
        let bind = move || {
            // SAFETY: it is the namespace of this thread alone that changes, which ends with the closure.
            let entered = unsafe { libc::setns(outside.as_raw_fd(), libc::CLONE_NEWNET) };
            assert_eq!(entered, 0, "root may enter a namespace");
            UdpSocket::bind("192.0.2.1:53").unwrap()
        };
        let socket = thread::spawn(bind).join().unwrap();
        thread::spawn(move || {
            let mut query = [0; 512];
            while let Ok((length, client)) = socket.recv_from(&mut query) {
                let _ = socket.send_to(&answer(&query[..length], name), client);
            }
        });
    }

    /// Serves `text` to whoever connects from now on, outside.
    fn serve_outside(&self, address: &str, port: u16, text: &str) -> Server {
        Server::start(&self.outside, address, port, text)
    }
}

impl Drop for World {
    fn drop(&mut self) {
        sh(&format!(
            "ip netns del {}; ip netns del {}",
            self.host, self.outside
        ));
    }
}

/// A server that ends with the test.
struct Server(Child);

impl Server {
    fn start(namespace: &str, address: &str, port: u16, text: &str) -> Self {
        let listen = match address.contains(':') {
            true => format!("TCP6-LISTEN:{port},bind=[{address}],fork,reuseaddr"),
            false => format!("TCP4-LISTEN:{port},bind={address},fork,reuseaddr"),
        };
        let child = Command::new("ip")
            .args([
                "netns",
                "exec",
                namespace,
                "socat",
                &listen,
                &format!("SYSTEM:echo {text} $SOCAT_PEERADDR"),
            ])
            .stdin(Stdio::null())
            .spawn()
            .expect("socat can be executed");
        for _ in 0..100 {
            let listening = sh(&format!(
                "ip netns exec {namespace} ss -Hltn sport = :{port} | wc -l"
            ));
            if listening.trim() != "0" {
                break;
            }
            sleep(Duration::from_millis(50));
        }
        Self(child)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The answer to a query by RFC 1035, section 4: the address of `name`, or that there is no such name.
fn answer(query: &[u8], name: &str) -> Vec<u8> {
    // Behind the header is the name that is asked for, each label after its length, an empty one last; then its type.
    let end = 13 + query[12..].iter().position(|byte| *byte == 0).unwrap();
    let label = |label: &str| [&[label.len() as u8], label.as_bytes()].concat();
    let known = name.split('.').chain([""]).flat_map(label);
    let (is_known, is_ipv4) = (
        query[12..end] == *known.collect::<Vec<u8>>(),
        query[end + 1] == 1,
    );
    let status = if is_known { 0x80 } else { 0x83 };
    let count = u8::from(is_known && is_ipv4);
    let header = [0x81, status, 0, 1, 0, count, 0, 0, 0, 0];
    let address = [0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 192, 0, 2, 1];
    [
        &query[..2],
        &header,
        &query[12..end + 4],
        &address.repeat(count.into()),
    ]
    .concat()
}

/// Open vSwitch on a host, of which nobody else's knows, with the datapath that needs no kernel module.
struct OpenVSwitch {
    /// Where its daemons and tools meet.
    directory: PathBuf,
    host: String,
    daemons: Vec<Child>,
}

impl OpenVSwitch {
    /// Its bridge `ovs0` is at 198.51.100.1.
    fn start(host: &Host, world: &World) -> Self {
        let mut switch = Self {
            directory: host.folder("openvswitch"),
            host: world.host.clone(),
            daemons: Vec::new(),
        };
        let file = |name: &str| switch.directory.join(name).display().to_string();
        let (database, socket) = (file("conf.db"), file("db.sock"));
        switch.run(&format!(
            "ovsdb-tool create {database} /usr/share/openvswitch/vswitch.ovsschema"
        ));
        switch.spawn(&[
            "ovsdb-server",
            &database,
            &format!("--remote=punix:{socket}"),
        ]);
        switch.run("ovs-vsctl --no-wait --retry --timeout=20 init");
        switch.spawn(&["ovs-vswitchd", &format!("unix:{socket}")]);
        switch.run(
            "ovs-vsctl --timeout=20 add-br ovs0 -- set bridge ovs0 datapath_type=netdev &&
             ip addr add 198.51.100.1/24 dev ovs0 && ip link set ovs0 up",
        );
        switch
    }

    fn spawn(&mut self, words: &[&str]) {
        let mut command = Command::new("ip");
        command
            .args(["netns", "exec", &self.host])
            .args(words)
            .env("OVS_RUNDIR", &self.directory)
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        self.daemons.push(command.spawn().unwrap());
    }

    fn run(&self, script: &str) -> String {
        let (host, directory) = (&self.host, self.directory.display());
        sh(&format!(
            "OVS_RUNDIR={directory} ip netns exec {host} sh -c '{script}'"
        ))
    }

    fn ports(&self) -> String {
        self.run("ovs-vsctl --timeout=20 list-ports ovs0")
    }
}

impl Drop for OpenVSwitch {
    fn drop(&mut self) {
        for daemon in self.daemons.iter_mut().rev() {
            let _ = daemon.kill();
            let _ = daemon.wait();
        }
    }
}

#[track_caller]
fn sh(script: &str) -> String {
    let output = Command::new("sh")
        .args(["-c", script])
        .output()
        .expect("there is a shell");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{script}: {errors}");
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

#[rstest]
#[case::ipv4("192.0.2.1", "192.0.2.2")]
#[case::ipv6("2001:db8::1", "2001:0db8:0000:0000:0000:0000:0000:0002")]
fn container_reaches_the_outside_as_its_host(#[case] address: &str, #[case] seen_as: &str) {
    let (host, world) = (Host::with_shared_images(), World::new());
    let _server = world.serve_outside(address, 8000, "hello");

    let run = world
        .container(&host)
        .network("host-nat")
        .shell(&format!("nc {address} 8000 </dev/null"))
        .finish();

    let text = run.text();
    assert!(
        text.starts_with("hello") && text.contains(seen_as),
        "{text} {}",
        run.stderr
    );
    host.assert_clean();
    assert_eq!(world.links(), ["lo", "up0"]);
    assert_eq!(world.on_the_host("nft list ruleset"), "");
}

#[test]
fn published_port_leads_into_the_container_from_outside_and_from_the_host() {
    let (host, world) = (Host::with_shared_images(), World::new());
    world.serve(&host);

    let outside = world
        .outside("until timeout 2 nc 192.0.2.2 8080 </dev/null | grep inside; do sleep 0.2; done");
    let loopback = world.on_the_host(
        "until timeout 2 nc 127.0.0.1 8080 </dev/null | grep inside; do sleep 0.2; done",
    );
    let by_ipv6 = world.outside(
        "until timeout 2 nc 2001:db8::2 8080 </dev/null | grep inside; do sleep 0.2; done",
    );
    let one_address = world
        .on_the_host("until timeout 2 nc ::1 8081 </dev/null | grep inside; do sleep 0.2; done");
    let other_address =
        world.outside("timeout 2 nc 2001:db8::2 8081 </dev/null || echo nothing there");
    let datagrams = ["192.0.2.2", "[2001:db8::2]"].map(|address| {
        world.outside(&format!(
            "until echo back | timeout 3 socat -t1 - UDP:{address}:8082 | grep back; do sleep 0.2; done"
        ))
    });
    let list = world.coracle(&host, &["ps"]).expect(0).text();
    let again = world
        .container(&host)
        .network("host-nat")
        .option("--publish", "8080:80")
        .command(["true"])
        .finish();

    assert_eq!((outside.as_str(), loopback.as_str()), ("inside", "inside"));
    assert_eq!(
        (by_ipv6.as_str(), one_address.as_str()),
        ("inside", "inside")
    );
    assert_eq!(other_address, "nothing there");
    assert_eq!(datagrams, ["back", "back"]);
    assert!(
        ["8080:80/tcp", "[::1]:8081:80/tcp", "8082:82/udp"]
            .iter()
            .all(|port| list.contains(port)),
        "{list}"
    );
    again.expect(125).says("8080");
    world.coracle(&host, &["rm", "-f", "web"]).expect(0);
    host.assert_clean();
}

#[test]
fn containers_reach_each_other_through_published_ports_alone() {
    let (host, world) = (Host::with_shared_images(), World::new());
    world.serve(&host);
    let shown = world
        .coracle(
            &host,
            &["exec", "web", "ip", "-4", "-o", "addr", "show", "eth0"],
        )
        .expect(0)
        .text();
    let (address, _) = shown
        .split_once("inet ")
        .unwrap()
        .1
        .split_once('/')
        .unwrap();

    let run = world
        .container(&host)
        .network("host-nat")
        .shell(&format!(
            "timeout 5 nc {address} 80 </dev/null || echo nothing; \
             until timeout 2 nc 192.0.2.2 8080 </dev/null | grep inside; do sleep 0.2; done"
        ))
        .expect(0);

    assert_eq!(run.text(), "nothing\ninside");
    world.coracle(&host, &["rm", "-f", "web"]).expect(0);
    host.assert_clean();
}

#[test]
fn containers_have_names_addresses_and_name_servers() {
    let (host, world) = (Host::with_shared_images(), World::new());

    let run = world
        .container(&host)
        .network("host-nat")
        .option("--hostname", "me")
        .option("--dns", "192.0.2.53")
        .option("--dns-search", "example.org")
        .shell("hostname; grep me$ /etc/hosts | wc -l; cat /etc/resolv.conf; ip -4 -o addr show eth0 | wc -l; ip -6 -o addr show eth0 scope global | wc -l; ip route | grep -c ^default")
        .expect(0);

    assert_eq!(
        run.text(),
        "me\n2\nnameserver 192.0.2.53\nsearch example.org\n1\n1\n1"
    );
}

/// Has a program see `$1` as the host's resolv.conf, and `$2` as the one behind systemd's stub.
const RESOLVER: &str = "mount -t tmpfs run /run && mkdir -p /run/systemd/resolve &&
    cp \"$2\" /run/systemd/resolve/resolv.conf &&
    file=$(readlink -m /etc/resolv.conf) && { test -e $file || touch $file; } &&
    mount --bind \"$1\" $file && shift 2 && exec \"$@\"";

#[rstest]
#[case::of_the_user(&["--dns=192.0.2.1", "--dns-search=example.org"], "nameserver 192.0.2.99\n", "")]
#[case::behind_the_hosts_stub(&[], "nameserver 127.0.0.53\nsearch example.org\n", "nameserver 192.0.2.1\n")]
fn container_asks_a_name_server(
    #[case] options: &[&str],
    #[case] resolv_conf: &str,
    #[case] upstream: &str,
) {
    let (host, world) = (Host::with_shared_images(), World::new());
    world.serve_names("web.example.org");
    let files = [("resolv.conf", resolv_conf), ("upstream", upstream)]
        .map(|(name, text)| host.file(name, text).display().to_string());
    let namespace = ["ip", "netns", "exec", world.host.as_str()];
    let [first, second] = &files;

    let run = options
        .iter()
        .fold(host.container(Image::BUSYBOX), |run, option| {
            run.flag(option)
        })
        .under([&namespace[..], &["sh", "-c", RESOLVER, "sh", first, second]].concat())
        .network("host-nat")
        .shell(
            "nslookup web.example.org; ping -c1 -W5 web; nslookup nosuch.example.org || echo none",
        )
        .expect(0);

    let text = run.text();
    let line = |start: &str| text.lines().any(|line| line.starts_with(start));
    assert!(line("Address: 192.0.2.1"), "{text}");
    assert!(
        line("PING web") && line("64 bytes from 192.0.2.1"),
        "{text}"
    );
    assert!(text.contains("NXDOMAIN") && line("none"), "{text}");
    host.assert_clean();
}

#[test]
fn without_a_network_there_is_the_loopback_alone() {
    let (host, world) = (Host::with_shared_images(), World::new());

    let run = world
        .container(&host)
        .network("none")
        .shell(
            "ls /sys/class/net; ip route | wc -l; ping -c1 127.0.0.1 >/dev/null && echo loopback",
        )
        .expect(0);

    assert_eq!(run.text(), "lo\n0\nloopback");
}

#[test]
fn container_joins_a_bridge_with_the_address_that_it_is_given() {
    let (host, world) = (Host::with_shared_images(), World::new());
    world.on_the_host(
        "ip link add br0 type bridge && ip addr add 198.51.100.1/24 dev br0 && ip link set br0 up",
    );

    let run = world
        .container(&host)
        .network("bridge:br0")
        .option("--ip", "198.51.100.7/24")
        .option("--gateway", "198.51.100.1")
        .shell("ping -c1 -W5 198.51.100.1 >/dev/null && ip route get 192.0.2.1 | head -n1")
        .expect(0);

    assert!(run.text().contains("via 198.51.100.1"), "{}", run.text());
    host.assert_clean();
    assert_eq!(world.on_the_host("ls /sys/class/net/br0/brif | wc -l"), "0");
}

#[test]
fn container_takes_a_tap_that_is_there_and_leaves_it_there() {
    let (host, world) = (Host::with_shared_images(), World::new());
    world.on_the_host("ip tuntap add mine mode tap vnet_hdr && ip addr add 198.51.100.1/24 dev mine && ip link set mine up");

    world
        .container(&host)
        .network("tap:mine")
        .option("--ip", "198.51.100.7/24")
        .shell("ping -c1 -W5 198.51.100.1 >/dev/null")
        .expect(0);

    assert_eq!(world.on_the_host("ip -br link show mine | wc -l"), "1");
    host.assert_clean();
}

#[test]
fn container_is_a_port_of_open_vswitch_by_its_bridge_and_by_a_tap() {
    let (host, world) = (Host::with_shared_images(), World::new());
    let switch = OpenVSwitch::start(&host, &world);
    world.on_the_host("ip tuntap add mine mode tap vnet_hdr && ip link set mine up");
    switch.run("ovs-vsctl --timeout=20 add-port ovs0 mine");

    for (network, address) in [
        ("bridge:ovs0", "198.51.100.7"),
        ("tap:mine", "198.51.100.8"),
    ] {
        let run = world
            .container(&host)
            .variable("OVS_RUNDIR", &switch.directory)
            .network(network)
            .option("--ip", format!("{address}/24"))
            .shell("ping -c1 -W5 198.51.100.1 >/dev/null && ip -4 -o addr show eth0")
            .expect(0);

        assert!(run.text().contains(address), "{}", run.text());
        assert_eq!(switch.ports(), "mine", "after {network}");
    }
    host.assert_clean();
}

/// Has `mine` made by CNI plugins, whose addresses are remembered in the folder `ipam/mine`; gives the configuration file.
fn cni_network(host: &Host) -> PathBuf {
    let configurations = host.folder("net.d");
    std::fs::write(
        configurations.join("mine.conflist"),
        r#"{"cniVersion": "0.4.0", "name": "mine", "plugins": [{"type": "bridge", "bridge": "cni0", "isGateway": true,
            "ipMasq": false, "ipam": {"type": "host-local", "dataDir": "DATA", "ranges": [[{"subnet": "198.51.100.0/24"}]],
            "routes": [{"dst": "0.0.0.0/0"}]}}]}"#
            .replace("DATA", &host.folder("ipam").display().to_string()),
    )
    .unwrap();
    host.file(
        "config.toml",
        format!(
            "[network]\ncni_configurations = [{:?}]\n",
            configurations.display().to_string()
        ),
    )
}

#[test]
fn container_joins_what_cni_plugins_make() {
    let (host, world) = (Host::with_shared_images(), World::new());
    let config = cni_network(&host);

    let run = world
        .container(&host)
        .variable("CORACLE_CONFIG", &config)
        .network("mine")
        .shell("ip -4 -o addr show eth0; ping -c1 -W5 198.51.100.1 >/dev/null && echo reached")
        .finish();

    assert!(
        run.text().contains("198.51.100.") && run.text().ends_with("reached"),
        "{} {}",
        run.text(),
        run.stderr
    );
    host.assert_clean();
    assert_eq!(
        world.on_the_host("ls /sys/class/net/cni0/brif | wc -l"),
        "0"
    );
}

#[rstest]
#[case::unknown("nosuch", "nosuch")]
#[case::no_bridge("bridge:nosuch", "nosuch")]
#[case::no_tap("tap:nosuch", "nosuch")]
#[case::kind("vlan:7", "vlan")]
fn network_that_is_not_there_is_refused(#[case] network: &str, #[case] says: &str) {
    let (host, world) = (Host::with_shared_images(), World::new());

    world
        .container(&host)
        .network(network)
        .command(["true"])
        .expect(125)
        .says(says);

    host.assert_clean();
}

#[test]
fn killed_run_leaves_nothing_of_its_network() {
    let (host, world) = (Host::with_shared_images(), World::new());
    world
        .container(&host)
        .detached()
        .option("--name", "web")
        .network("host-nat")
        .option("--publish", "8080:80")
        .command(["sleep", "1000"])
        .expect(0);
    let runner = host.run(&["inspect", "web"]).expect(0).text();
    let runner: serde_json::Value = serde_json::from_str(&runner).unwrap();
    let runner = runner[0]["status"]["runner"].as_i64().unwrap();

    coracle_tests::tools::kill(i32::try_from(runner).unwrap());

    host.await_status("web", "lost");
    world.coracle(&host, &["rm", "web"]).expect(0);
    host.assert_clean();
    assert_eq!(world.links(), ["lo", "up0"]);
    assert_eq!(world.on_the_host("nft list ruleset"), "");
}

#[test]
fn killed_run_gives_back_what_cni_plugins_gave_it() {
    let (host, world) = (Host::with_shared_images(), World::new());
    let config = cni_network(&host);
    let addresses = || {
        let given = std::fs::read_dir(host.files().join("ipam/mine")).unwrap();
        let names = given.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        names.filter(|name| name.starts_with("198.51.100.")).count()
    };
    world
        .container(&host)
        .variable("CORACLE_CONFIG", &config)
        .detached()
        .option("--name", "web")
        .network("mine")
        .command(["sleep", "1000"])
        .expect(0);
    let runner = host.run(&["inspect", "web"]).expect(0).text();
    let runner: serde_json::Value = serde_json::from_str(&runner).unwrap();
    let runner = runner[0]["status"]["runner"].as_i64().unwrap();
    let before = addresses();

    coracle_tests::tools::kill(i32::try_from(runner).unwrap());

    host.await_status("web", "lost");
    let deadline = Instant::now() + Duration::from_secs(20);
    while addresses() > 0 && Instant::now() < deadline {
        sleep(Duration::from_millis(50));
    }
    assert_eq!((before, addresses()), (1, 0));
    world.coracle(&host, &["rm", "web"]).expect(0);
    host.assert_clean();
}

#[test]
fn truth_is_told_after_a_restart_of_the_host_and_all_is_as_usable_as_before() {
    let host = Host::new();
    let boot = || {
        let world = World::new();
        world.on_the_host("echo 0 >/proc/sys/net/ipv4/ip_forward");
        world
    };
    let world = boot();
    let config = cni_network(&host);
    let leases = || {
        let given = std::fs::read_dir(host.files().join("ipam/mine")).unwrap();
        let names = given.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        names.filter(|name| name.starts_with("198.51.100.")).count()
    };
    let image = Image::BUSYBOX.to_string();
    host.run(&["load", &image, "busybox"]).expect(0);
    host.container("busybox")
        .kept()
        .option("--name", "done")
        .shell("exit 3")
        .expect(3);
    await_written_out(&host);
    host.container("busybox")
        .under(["ip", "netns", "exec", &world.host])
        .variable("CORACLE_CONFIG", &config)
        .detached()
        .option("--name", "web")
        .network("host-nat")
        .network("mine")
        .option("--publish", "8080:80")
        .shell("echo written >/file; echo said; sleep 1000")
        .expect(0);
    let mut logs = host.start(host.coracle(&["logs", "-f", "web"]));
    assert_eq!((logs.line().as_str(), leases()), ("said", 1));
    logs.signal(libc::SIGKILL);
    logs.finish().expect(137);

    host.crash();
    drop(world);
    let world = boot();
    let id = host.file("boot_id", "d1f0c5d6-0000-4000-8000-000000000000\n");
    let in_another_boot = format!(
        "mount --bind {} /proc/sys/kernel/random/boot_id && exec \"$@\"",
        id.display()
    );
    let under = [
        "ip",
        "netns",
        "exec",
        &world.host,
        "sh",
        "-c",
        &in_another_boot,
        "sh",
    ];
    let config = config.display().to_string();
    let coracle = |words: &[&str]| host.run_under(under, &[&["--config", &config], words].concat());

    let list = coracle(&["ps", "-a"]).expect(0).text();
    let line = |name: &str| list.lines().find(|line| line.contains(name)).unwrap();
    assert!(line("done").contains("exited (3)"), "{list}");
    let lost = line("web");
    assert!(lost.contains("lost") && !lost.contains("8080"), "{list}");
    assert_eq!(coracle(&["ps", "-q"]).expect(0).text(), "");
    assert_eq!(coracle(&["logs", "web"]).expect(0).text(), "said");
    let copy = host.files().join("copy");
    coracle(&["cp", "web:/file", copy.to_str().unwrap()]).expect(0);
    assert_eq!(std::fs::read_to_string(copy).unwrap(), "written\n");
    coracle(&["exec", "web", "true"])
        .expect(125)
        .says_once(&["is not running"]);
    coracle(&["rmi", "busybox"]).expect(125).says_once(&["web"]);
    let removed = coracle(&["rm", "web", "done"]).expect(0);
    assert_eq!((removed.stderr.as_str(), leases()), ("", 0));

    let run = host
        .container("busybox")
        .under(under)
        .detached()
        .option("--name", "web")
        .network("host-nat")
        .option("--publish", "8080:80")
        .shell("while :; do echo inside | nc -l -p 80; done")
        .expect(0);
    assert_eq!(run.stderr, "");
    let outside = "until timeout 2 nc 192.0.2.2 8080 </dev/null | grep inside; do sleep 0.2; done";
    assert_eq!(world.outside(outside), "inside");
    coracle(&["rm", "-f", "web"]).expect(0);
    coracle(&["rmi", "busybox"]).expect(0);

    assert_eq!(coracle(&["images", "-q"]).expect(0).text(), "");
    host.assert_clean();
    assert_eq!(world.links(), ["lo", "up0"]);
    assert_eq!(world.on_the_host("nft list ruleset"), "");
    assert_eq!(world.on_the_host("cat /proc/sys/net/ipv4/ip_forward"), "0");
}

/// Waits until the unpacked image is on the disk, as it is some time after a run.
fn await_written_out(host: &Host) {
    let trees = host.images().join("trees/sha256");
    let tree = std::fs::read_dir(trees).unwrap().next().unwrap().unwrap();
    let deadline = Instant::now() + Duration::from_secs(20);
    while !tree.path().join("durable").exists() {
        assert!(Instant::now() < deadline, "an image is written out");
        sleep(Duration::from_millis(50));
    }
}
