// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The world of a test: this thread's network namespace is the host, a second one is what lies outside of it, further ones are
//! guests behind taps.

use std::fs::File;
use std::io::{PipeReader, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use coracle_network::{
    Addressing, Attachment, DnsOverrides, Network, NetworkConfig, NetworkError, PortMapping,
    Request,
};
use rustix::event::{PollFd, PollFlags};
use rustix::fs::{Mode, OFlags};
use rustix::pipe::PipeFlags;
use rustix::thread::{LinkNameSpaceType, UnshareFlags};
use serde_json::{Value, json};
use tempfile::TempDir;

/// Long enough for a busy machine to connect on loopback.
pub const PATIENCE: Duration = Duration::from_secs(10);

/// What is not answered in this time is not answered.
pub const SILENCE: Duration = Duration::from_millis(1500);

/// Addresses of the link between the host and the outside.
pub const HOST4: &str = "192.0.2.1";
pub const OUTSIDE4: &str = "192.0.2.2";
pub const HOST6: &str = "2001:db8::1";
pub const OUTSIDE6: &str = "2001:db8::2";

/// What all of these tests need and this host does not have.
pub fn lacks_for_all() -> Option<&'static str> {
    if !rustix::process::geteuid().is_root() {
        Some("they take root")
    } else if !Path::new("/dev/net/tun").exists() {
        Some("/dev/net/tun does not exist")
    } else if !has_program("ip") {
        Some("the program ip is missing (package iproute2)")
    } else if !has_program("nft") {
        Some("the program nft is missing (package nftables)")
    } else {
        None
    }
}

pub fn has_program(name: &str) -> bool {
    let path = std::env::var("PATH").unwrap_or_default();
    path.split(':')
        .any(|directory| Path::new(directory).join(name).exists())
}

/// Runs a program in this thread's namespace; its output.
pub fn run(program: &str, arguments: &str) -> String {
    let output = Command::new(program)
        .args(arguments.split_whitespace())
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{program} {arguments}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap()
}

pub fn ip(arguments: &str) -> String {
    run("ip", arguments)
}

/// Gives `nft` rules.
pub fn nft(rules: &str) {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(rules.as_bytes()).unwrap();
    run("nft", &format!("-f {}", file.path().display()));
}

/// Tables that all machines share, by name.
pub const SHARED_TABLES: [&str; 2] = ["coracle", "coracle-strangers"];

/// The names of nftables tables that start as ours do.
pub fn our_tables() -> Vec<String> {
    let mut tables: Vec<String> = run("nft", "list tables")
        .lines()
        .filter_map(|line| line.split_whitespace().last().map(str::to_owned))
        .filter(|table| table.starts_with("coracle"))
        .collect();
    tables.sort();
    tables
}

/// Waits until a link says that it is up.
pub fn wait_for_carrier(link: &str) {
    let deadline = Instant::now() + PATIENCE;
    while !ip(&format!("-br link show {link}")).contains(" UP ") {
        assert!(Instant::now() < deadline, "{link} does not come up");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Waits until an IPv6 address of this thread's namespace is in use: the kernel gives it its route on another thread, when
/// its link is up.
pub fn wait_for_ipv6(address: &str) {
    let deadline = Instant::now() + PATIENCE;
    while ip(&format!("-6 route show table local type local {address}")).is_empty() {
        assert!(Instant::now() < deadline, "{address} does not come up");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// The names of links that start so.
pub fn links_like(prefix: &str) -> Vec<String> {
    ip("-o link")
        .lines()
        .filter_map(|line| line.split(": ").nth(1).map(str::to_owned))
        .filter(|name| name.starts_with(prefix))
        .collect()
}

pub fn sysctl(path: &str) -> String {
    std::fs::read_to_string(Path::new("/proc/sys/net").join(path))
        .unwrap()
        .trim()
        .to_owned()
}

pub fn set_sysctl(path: &str, value: &str) {
    std::fs::write(Path::new("/proc/sys/net").join(path), value).unwrap();
}

/// What says that this host is a router, of IPv4 and of IPv6.
const FORWARDING: [&str; 2] = ["ipv4/ip_forward", "ipv6/conf/all/forwarding"];

pub fn set_forwarding(value: &str) {
    for setting in FORWARDING {
        set_sysctl(setting, value);
    }
}

pub fn forwarding() -> [String; 2] {
    FORWARDING.map(sysctl)
}

/// A network namespace beside the host's.
#[derive(Clone)]
pub struct Space(Arc<OwnedFd>);

impl Space {
    pub fn new() -> Self {
        in_thread(|| {
            // SAFETY: this thread alone leaves its network namespace; no memory or descriptor is unshared.
            unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNET) }.unwrap();
            ip("link set lo up");
            let fd = rustix::fs::open(
                "/proc/thread-self/ns/net",
                OFlags::RDONLY | OFlags::CLOEXEC,
                Mode::empty(),
            );
            Self(Arc::new(fd.unwrap()))
        })
    }

    /// Does something inside. Sockets that are made there stay there.
    pub fn within<T: Send>(&self, action: impl FnOnce() -> T + Send) -> T {
        in_thread(|| {
            rustix::thread::move_into_link_name_space(
                self.0.as_fd(),
                Some(LinkNameSpaceType::Network),
            )
            .unwrap();
            action()
        })
    }

    pub fn ip(&self, arguments: &str) -> String {
        self.within(|| ip(arguments))
    }

    /// Where `ip link` finds it.
    pub fn path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.0.as_raw_fd())
    }

    /// A server that tells each client what address it is seen with.
    pub fn serve_tcp(&self, address: &str, port: u16) -> u16 {
        self.within(|| serve_tcp(address, port))
    }

    /// What the server there tells us of ourselves.
    pub fn ask_tcp(&self, address: &str, port: u16) -> Option<IpAddr> {
        self.within(|| ask_tcp(address, port, PATIENCE))
    }

    /// Whether nobody answers there.
    pub fn gets_no_tcp_answer(&self, address: &str, port: u16) -> bool {
        self.within(|| ask_tcp(address, port, SILENCE)).is_none()
    }
}

fn in_thread<T: Send>(action: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| scope.spawn(action).join().unwrap())
}

fn socket_address(address: &str, port: u16) -> SocketAddr {
    SocketAddr::new(address.parse().unwrap(), port)
}

pub fn serve_tcp(address: &str, port: u16) -> u16 {
    let listener = TcpListener::bind(socket_address(address, port)).unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        while let Ok((mut client, peer)) = listener.accept() {
            let _ = client.write_all(peer.ip().to_canonical().to_string().as_bytes());
        }
    });
    port
}

pub fn ask_tcp(address: &str, port: u16, patience: Duration) -> Option<IpAddr> {
    let mut stream = TcpStream::connect_timeout(&socket_address(address, port), patience).ok()?;
    stream.set_read_timeout(Some(patience)).unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).ok()?;
    text.parse().ok()
}

/// A server that sends back to each client what address it is seen with.
pub fn serve_udp(address: &str, port: u16) {
    let socket = UdpSocket::bind(socket_address(address, port)).unwrap();
    std::thread::spawn(move || {
        let mut buffer = [0; 64];
        while let Ok((_, peer)) = socket.recv_from(&mut buffer) {
            let _ = socket.send_to(peer.ip().to_canonical().to_string().as_bytes(), peer);
        }
    });
}

pub fn ask_udp(address: &str, port: u16) -> Option<IpAddr> {
    let target = socket_address(address, port);
    let any = if target.is_ipv4() {
        "0.0.0.0:0"
    } else {
        "[::]:0"
    };
    let socket = UdpSocket::bind(any).unwrap();
    socket.set_read_timeout(Some(SILENCE)).unwrap();
    // The first may be lost to neighbour discovery.
    for _ in 0..4 {
        socket.send_to(b"who am I", target).ok()?;
        let mut buffer = [0; 64];
        if let Ok((length, _)) = socket.recv_from(&mut buffer) {
            return std::str::from_utf8(&buffer[..length]).unwrap().parse().ok();
        }
    }
    None
}

/// The host and what is outside of it.
pub struct World {
    pub outside: Space,
    pub config: NetworkConfig,
    /// What cancels an attachment.
    pub cancel: Option<PipeReader>,
    directory: TempDir,
}

impl World {
    /// A host with a link to the outside, and default routes to it. It is no router.
    pub fn new() -> Self {
        let outside = Space::new();
        set_forwarding("0");
        ip("link set lo up");
        ip(&format!(
            "link add up0 type veth peer name eth0 netns {}",
            outside.path()
        ));
        // No address of the kernel's own, which would come at a time of its own.
        ip("link set up0 addrgenmode none");
        for (address, prefix) in [(HOST4, 24), (HOST6, 64)] {
            ip(&format!(
                "addr add {address}/{prefix} dev up0{}",
                nodad(address)
            ));
        }
        ip("link set up0 up");
        for (address, prefix) in [(OUTSIDE4, 24), (OUTSIDE6, 64)] {
            outside.ip(&format!(
                "addr add {address}/{prefix} dev eth0{}",
                nodad(address)
            ));
        }
        outside.ip("link set eth0 up");
        wait_for_carrier("up0");
        wait_for_ipv6(HOST6);
        outside.within(|| wait_for_ipv6(OUTSIDE6));
        ip(&format!("route add default via {OUTSIDE4}"));
        ip(&format!("-6 route add default via {OUTSIDE6}"));
        let directory = tempfile::tempdir().unwrap();
        let resolv_conf = directory.path().join("resolv.conf");
        std::fs::write(
            &resolv_conf,
            format!("nameserver {OUTSIDE4}\nsearch example.org\n"),
        )
        .unwrap();
        let config = NetworkConfig {
            state: directory.path().join("state"),
            cni_configurations: vec![directory.path().join("net.d")],
            resolv_conf,
            ..NetworkConfig::default()
        };
        Self {
            outside,
            config,
            cancel: None,
            directory,
        }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub fn try_attach(
        &self,
        id: &str,
        networks: &[&str],
        ports: &[&str],
        addressing: &Addressing,
    ) -> Result<Attachment, NetworkError> {
        let networks: Vec<Network> = networks
            .iter()
            .map(|network| network.parse().unwrap())
            .collect();
        let ports: Vec<PortMapping> = ports.iter().map(|port| port.parse().unwrap()).collect();
        coracle_network::attach(&Request {
            id,
            networks: &networks,
            ports: &ports,
            addressing,
            dns: &DnsOverrides::default(),
            config: &self.config,
            cancel: self.cancel.as_ref().map(PipeReader::as_fd),
        })
    }

    /// Attaches a machine to these networks.
    pub fn attach(&self, id: &str, networks: &[&str], ports: &[&str]) -> Attachment {
        self.try_attach(id, networks, ports, &Addressing::default())
            .unwrap()
    }

    /// What went wrong when that was tried.
    pub fn refusal(&self, id: &str, networks: &[&str], ports: &[&str]) -> NetworkError {
        self.try_attach(id, networks, ports, &Addressing::default())
            .unwrap_err()
    }

    /// Configures a CNI network of these plugins.
    pub fn configure(&self, name: &str, plugins: &Value) {
        let list = json!({"cniVersion": "1.0.0", "name": name, "plugins": plugins});
        let directory = &self.config.cni_configurations[0];
        std::fs::create_dir_all(directory).unwrap();
        std::fs::write(self.configuration(name), list.to_string()).unwrap();
    }

    /// Where that is written.
    pub fn configuration(&self, name: &str) -> PathBuf {
        self.config.cni_configurations[0].join(format!("10-{name}.conflist"))
    }

    /// What the state directory still knows of machines.
    pub fn remembered(&self) -> Vec<String> {
        coracle_network::leftovers(&self.config).unwrap()
    }
}

/// Another network of the host's, as it might have one behind a VPN or for containers of another engine, with a machine in it.
pub struct SideNetwork {
    pub space: Space,
    pub address4: &'static str,
    pub address6: &'static str,
}

impl SideNetwork {
    /// Its machine and those outside know the way to each other: through the host.
    pub fn new(world: &World) -> Self {
        let space = Space::new();
        let (address4, address6) = ("198.51.100.2", "2001:db8:51::2");
        ip(&format!(
            "link add side0 type veth peer name eth0 netns {}",
            space.path()
        ));
        ip("addr add 198.51.100.1/24 dev side0");
        ip("addr add 2001:db8:51::1/64 dev side0 nodad");
        ip("link set side0 up");
        space.ip(&format!("addr add {address4}/24 dev eth0"));
        space.ip(&format!("addr add {address6}/64 dev eth0 nodad"));
        space.ip("link set eth0 up");
        wait_for_carrier("side0");
        wait_for_ipv6("2001:db8:51::1");
        space.within(|| wait_for_ipv6(address6));
        space.ip("route add default via 198.51.100.1");
        space.ip("-6 route add default via 2001:db8:51::1");
        world
            .outside
            .ip(&format!("route add 198.51.100.0/24 via {HOST4}"));
        world
            .outside
            .ip(&format!("-6 route add 2001:db8:51::/64 via {HOST6}"));
        Self {
            space,
            address4,
            address6,
        }
    }
}

/// Test addresses are used at once.
pub fn nodad(address: &str) -> &'static str {
    if address.contains(':') { " nodad" } else { "" }
}

/// A guest: a namespace with a tap of its own, between which and the machine's tap frames are copied.
pub struct Guest {
    pub space: Space,
    pub addresses: Vec<String>,
    stop: OwnedFd,
    copying: Vec<JoinHandle<()>>,
}

impl Guest {
    /// Starts it with what the attachment says, as an agent would.
    pub fn start(attachment: &Attachment) -> Self {
        let space = Space::new();
        let (stop_reader, stop) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC).unwrap();
        let stop_reader = Arc::new(stop_reader);
        let mut copying = Vec::new();
        for interface in attachment.interfaces() {
            let tap = space.within(|| make_tap(&interface.name));
            let outer = interface.tap.try_clone().unwrap();
            space.ip(&format!(
                "link set {} address {} mtu {}",
                interface.name, interface.mac, interface.mtu
            ));
            for address in &interface.addresses {
                space.ip(&format!(
                    "addr add {address} dev {}{}",
                    interface.name,
                    nodad(&address.to_string())
                ));
            }
            space.ip(&format!("link set {} up", interface.name));
            for address in interface
                .addresses
                .iter()
                .filter(|address| address.addr().is_ipv6())
            {
                space.within(|| wait_for_ipv6(&address.addr().to_string()));
            }
            let stop_reader = Arc::clone(&stop_reader);
            copying.push(std::thread::spawn(move || {
                copy_frames(&File::from(outer), &File::from(tap), &stop_reader)
            }));
        }
        for neighbour in attachment.neighbours() {
            space.ip(&format!(
                "neigh add {} lladdr {} dev {}",
                neighbour.address, neighbour.mac, neighbour.interface
            ));
        }
        for route in attachment.routes() {
            let mut command = format!("route add {} dev {}", route.destination, route.interface);
            if let Some(gateway) = route.gateway {
                command.push_str(&format!(" via {gateway}"));
            }
            if route.on_link {
                command.push_str(" onlink");
            }
            if let Some(metric) = route.metric {
                command.push_str(&format!(" metric {metric}"));
            }
            space.ip(&command);
        }
        let addresses = attachment
            .interfaces()
            .iter()
            .flat_map(|interface| &interface.addresses)
            .map(|address| address.addr().to_string())
            .collect();
        Self {
            space,
            addresses,
            stop,
            copying,
        }
    }

    /// Its first address of IPv4.
    pub fn ipv4(&self) -> &str {
        self.addresses
            .iter()
            .find(|address| address.contains('.'))
            .unwrap()
    }

    /// Its first address of IPv6.
    pub fn ipv6(&self) -> &str {
        self.addresses
            .iter()
            .find(|address| address.contains(':'))
            .unwrap()
    }

    /// The guest ends; nothing of it has the machine's tap open any more.
    pub fn stop(self) {
        drop(self.stop);
        for thread in self.copying {
            thread.join().unwrap();
        }
    }
}

/// What there is to read on the guest's end of the wire, each frame behind the tap's header.
pub fn frames_for_the_guest(mut wire: &File) -> Vec<Vec<u8>> {
    let mut frames = Vec::new();
    let mut frame = vec![0; 1 << 16];
    while let Ok(length) = wire.read(&mut frame) {
        frames.push(frame[..length].to_vec());
    }
    frames
}

/// A tap whose frames have the same header before them as the machine's.
fn make_tap(name: &str) -> OwnedFd {
    let fd = rustix::fs::open(
        "/dev/net/tun",
        OFlags::RDWR | OFlags::CLOEXEC | OFlags::NONBLOCK,
        Mode::empty(),
    )
    .unwrap();
    // SAFETY: all of the structure's fields are plain numbers, for which zero is a value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (place, byte) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *place = byte.cast_signed();
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR) as _;
    // SAFETY: the descriptor is open, and the kernel reads and writes one `ifreq` at this address.
    let result = unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNSETIFF, &raw mut request) };
    assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
    fd
}

fn copy_frames(outer: &File, inner: &File, stop: &OwnedFd) {
    let mut frame = vec![0; 1 << 16];
    loop {
        let mut fds = [
            PollFd::new(outer, PollFlags::IN),
            PollFd::new(inner, PollFlags::IN),
            PollFd::new(stop, PollFlags::IN),
        ];
        if rustix::event::poll(&mut fds, None).is_err() || !fds[2].revents().is_empty() {
            return;
        }
        for (mut from, mut to) in [(outer, inner), (inner, outer)] {
            while let Ok(length) = from.read(&mut frame) {
                // A full queue drops frames, as a wire does.
                let _ = to.write(&frame[..length]);
            }
        }
    }
}
