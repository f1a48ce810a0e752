//! `paddock-runner look [PLACE…]`: what a script finds around it in a sandbox, for `kubectl paddock doctor`. It can do nothing that any program in the sandbox
//! could not: it is here since it is in every sandbox, whatever the image holds.
//!
//! Of everything one line is printed, NAME=FACT; what cannot be read has none. The facts: `kernel`, `user`, `secrets` (how many files lie where Kubernetes
//! mounts those of an account), `interfaces`, `root` (`read-only` or `writable`), `ipv4` and `ipv6` (whether a way leads further than the own link: `way` or
//! `none`), and `resolver` (whether any name server of the sandbox answers).
//!
//! Places are `tcp://ADDRESS:PORT`, `dns://ADDRESS:PORT`, and `proxy://AUTHORITY`, which the proxy of the environment is asked for. Their facts are `answers` or
//! `silent`; of the proxy its status with the rest of that line, or `silent`.

use std::fs;
use std::io::{self, Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket};
use std::path::Path;
use std::thread;
use std::time::Duration;

use paddock_protocol::{ROOT_QUESTION, name_servers};

use crate::place::interfaces;

/// How long a place may take to answer.
const ANSWER: Duration = Duration::from_secs(2);
/// The proxy asks the gateway, which may have to look for a name.
const ANSWER_OF_THE_PROXY: Duration = Duration::from_secs(15);
/// Longest first line that is read of the proxy's answer, in bytes.
const LINE: usize = 256;
/// Attempts at a place that is silent: what is lost on the way says nothing.
const ATTEMPTS: usize = 2;
/// Where Kubernetes mounts tokens of accounts, and clouds theirs beside them.
const SECRETS: [&str; 2] = ["/var/run/secrets", "/run/secrets"];
/// Folders within each other that are looked into.
const DEPTH: usize = 6;
/// Addresses for documentation (RFC 5737, RFC 3849): nothing is sent there. A socket that is connected knows whether a way leads there.
const FAR: [(&str, IpAddr); 2] =
    [("ipv4", IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1))), ("ipv6", IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1)))];

/// Looks around, and tries all places. `proxy` is where the proxy is, as in `HTTPS_PROXY`.
pub(crate) fn look(places: &[&str], proxy: Option<&str>) -> Vec<String> {
    let resolver = fs::read_to_string("/etc/resolv.conf").ok();
    let resolver =
        resolver.map(|resolver| if servers(&resolver).into_iter().any(|server| ask_dns(server).is_ok()) { "answers" } else { "silent" });
    facts().into_iter().chain(resolver.map(|told| format!("resolver={told}"))).chain(tried(places, proxy)).collect()
}

/// Tries all places at once.
fn tried(places: &[&str], proxy: Option<&str>) -> Vec<String> {
    let told = |place: &str| format!("{place}={}", answer(place, proxy).unwrap_or_else(|_| "silent".to_owned()));
    thread::scope(|scope| {
        let asked: Vec<_> = places.iter().map(|place| scope.spawn(move || told(place))).collect();
        asked.into_iter().filter_map(|thread| thread.join().ok()).collect()
    })
}

fn facts() -> Vec<String> {
    let read = |path: &str| fs::read_to_string(path).ok();
    let secrets: usize = SECRETS.iter().map(|folder| files_below(Path::new(folder), DEPTH)).sum();
    let known = [
        ("kernel", read("/proc/sys/kernel/osrelease").map(|kernel| kernel.trim().to_owned())),
        ("user", read("/proc/self/status").and_then(|status| user(&status))),
        ("secrets", Some(secrets.to_string())),
        ("interfaces", read("/proc/net/dev").map(|table| interfaces(&table).join(" "))),
        ("root", read("/proc/self/mounts").and_then(|mounts| root(&mounts).map(str::to_owned))),
    ];
    let ways = FAR.map(|(family, far)| (family, Some(if has_way(far) { "way" } else { "none" }.to_owned())));
    known.into_iter().chain(ways).filter_map(|(name, fact)| Some(format!("{name}={}", fact?))).collect()
}

/// The effective user of `/proc/self/status`.
fn user(status: &str) -> Option<String> {
    let ids = status.lines().find_map(|line| line.strip_prefix("Uid:"))?;
    ids.split_whitespace().nth(1).map(str::to_owned)
}

/// How `/` is mounted: of several mounts the last one counts.
fn root(mounts: &str) -> Option<&'static str> {
    let mut options = mounts.lines().filter_map(|line| {
        let mut words = line.split(' ').skip(1);
        (words.next()? == "/").then(|| words.nth(1)).flatten()
    });
    let is_read_only = options.next_back()?.split(',').any(|option| option == "ro");
    Some(if is_read_only { "read-only" } else { "writable" })
}

fn files_below(folder: &Path, depth: usize) -> usize {
    let Ok(entries) = fs::read_dir(folder) else { return 0 };
    let count = |entry: fs::DirEntry| {
        let is_folder = entry.file_type().is_ok_and(|kind| kind.is_dir());
        if is_folder && depth > 1 { files_below(&entry.path(), depth - 1) } else { 1 }
    };
    entries.flatten().map(count).sum()
}

fn has_way(far: IpAddr) -> bool {
    let here: IpAddr = if far.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    UdpSocket::bind((here, 0)).and_then(|socket| socket.connect((far, 9))).is_ok()
}

fn answer(place: &str, proxy: Option<&str>) -> io::Result<String> {
    let address = |text: &str| text.parse::<SocketAddr>().map_err(io::Error::other);
    let again = |once: &dyn Fn() -> io::Result<()>| (1..ATTEMPTS).fold(once(), |told, _| told.or_else(|_| once()));
    let answers = match place.split_once("://") {
        Some(("tcp", place)) => {
            let place = address(place)?;
            again(&|| TcpStream::connect_timeout(&place, ANSWER).map(|_| ()))
        }
        Some(("dns", place)) => {
            let place = address(place)?;
            again(&|| ask_dns(place))
        }
        Some(("proxy", authority)) => {
            let proxy = proxy.and_then(|proxy| proxy.strip_prefix("http://")).ok_or_else(|| io::Error::other("no proxy"))?;
            return ask_proxy(address(proxy.trim_end_matches('/'))?, authority);
        }
        _ => Err(io::Error::other("no place")),
    };
    answers.map(|()| "answers".to_owned())
}

/// Those of the sandbox: where none is named, resolvers ask the one of their own machine.
fn servers(resolver: &str) -> Vec<SocketAddr> {
    let named = name_servers(resolver);
    if named.is_empty() { vec![(Ipv4Addr::LOCALHOST, 53).into()] } else { named }
}

fn ask_dns(server: SocketAddr) -> io::Result<()> {
    let here: SocketAddr = if server.is_ipv4() { (Ipv4Addr::UNSPECIFIED, 0).into() } else { (Ipv6Addr::UNSPECIFIED, 0).into() };
    let socket = UdpSocket::bind(here)?;
    socket.set_read_timeout(Some(ANSWER))?;
    socket.connect(server)?;
    socket.send(&ROOT_QUESTION)?;
    socket.recv(&mut [0; 512]).map(|_| ())
}

/// Status and reason of the answer: `403 NotGranted`.
fn ask_proxy(proxy: SocketAddr, authority: &str) -> io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&proxy, ANSWER)?;
    stream.set_read_timeout(Some(ANSWER_OF_THE_PROXY))?;
    write!(stream, "CONNECT {authority} HTTP/1.1\r\nHost: {authority}\r\n\r\n")?;
    let (mut head, mut byte) = (Vec::new(), [0]);
    while head.len() < LINE && !head.ends_with(b"\r\n") && stream.read(&mut byte)? > 0 {
        head.push(byte[0]);
    }
    let line = String::from_utf8_lossy(&head);
    line.trim().split_once(' ').map(|(_, rest)| rest.to_owned()).ok_or_else(|| io::Error::other("no answer of HTTP"))
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead as _, BufReader};
    use std::net::TcpListener;

    use super::*;

    fn listener() -> (TcpListener, SocketAddr) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        (listener, address)
    }

    #[test]
    fn who_listens_answers_and_who_does_not_is_silent() {
        let (_open, open) = listener();
        let closed = listener().1;
        let server = UdpSocket::bind("127.0.0.1:0").unwrap();
        let dns = server.local_addr().unwrap();
        let answering = thread::spawn(move || {
            let (length, client) = server.recv_from(&mut [0; 64]).unwrap();
            server.send_to(b"no", client).unwrap();
            length
        });
        let places = [format!("tcp://{open}"), format!("tcp://{closed}"), format!("dns://{dns}"), "tcp://name:1".into(), "x".into()];
        let places: Vec<&str> = places.iter().map(String::as_str).collect();
        let told = tried(&places, None);
        let answers: Vec<&str> = told.iter().map(|line| line.rsplit_once('=').unwrap().1).collect();
        assert_eq!(answers, ["answers", "silent", "answers", "silent", "silent"]);
        assert_eq!(answering.join().unwrap(), ROOT_QUESTION.len());
    }

    #[test]
    fn facts_are_read_from_what_the_kernel_says() {
        assert_eq!(user("Name:\tx\nUid:\t0\t65532\t0\t0\n").as_deref(), Some("65532"));
        assert_eq!(user("Name:\tx\n"), None);
        assert_eq!(root("none / 9p rw,x 0 0\nnone /tmp 9p rw 0 0\nnone / 9p ro,trans=fd 0 0\n"), Some("read-only"));
        assert_eq!(root("none / 9p rw,errors=remount-ro 0 0\n"), Some("writable"));
        assert_eq!(root("none /tmp 9p ro 0 0\n"), None);
        let folder = std::env::temp_dir().join(format!("paddock-look-{}", std::process::id()));
        fs::create_dir_all(folder.join("azure/tokens")).unwrap();
        fs::write(folder.join("azure/tokens/identity"), "x").unwrap();
        assert_eq!((files_below(&folder, DEPTH), files_below(&folder.join("none"), DEPTH)), (1, 0));
        fs::remove_dir_all(&folder).unwrap();
    }

    /// Every fact is known where the tests run too: what is missing would be no bad news.
    #[test]
    fn nothing_is_missing() {
        let told = facts();
        let names: Vec<&str> = told.iter().map(|line| line.split_once('=').unwrap().0).collect();
        assert_eq!(names, ["kernel", "user", "secrets", "interfaces", "root", "ipv4", "ipv6"]);
    }

    #[test]
    fn a_sandbox_without_name_servers_asks_itself() {
        assert_eq!(servers("nameserver 10.0.0.1\n"), ["10.0.0.1:53".parse().unwrap()]);
        assert_eq!(servers(""), ["127.0.0.1:53".parse().unwrap()]);
    }

    #[test]
    fn the_proxy_is_asked_as_by_any_client() {
        let (proxy, address) = listener();
        let serving = thread::spawn(move || {
            let mut stream = BufReader::new(proxy.accept().unwrap().0);
            let mut asked = String::new();
            while !asked.ends_with("\r\n\r\n") {
                stream.read_line(&mut asked).unwrap();
            }
            stream.get_mut().write_all(b"HTTP/1.1 403 NotGranted\r\nContent-Length: 0\r\n\r\n").unwrap();
            asked
        });
        let told = tried(&["proxy://[::1]:443"], Some(&format!("http://{address}")));
        assert_eq!(told[0], "proxy://[::1]:443=403 NotGranted");
        assert_eq!(serving.join().unwrap(), "CONNECT [::1]:443 HTTP/1.1\r\nHost: [::1]:443\r\n\r\n");
        assert_eq!(tried(&["proxy://a:1"], None), ["proxy://a:1=silent"]);
    }
}
