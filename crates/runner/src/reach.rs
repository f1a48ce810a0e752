//! `paddock-runner reach PLACE…`: what a sandbox reaches, for the scripts of `kubectl paddock doctor`. It can nothing that any program in the sandbox could
//! not: it is here since it is in every sandbox, whatever the image.
//!
//! Places are `tcp://ADDRESS:PORT`, `dns://ADDRESS:PORT`, `resolver`, which is every name server of the sandbox, and `proxy://AUTHORITY`, which the proxy of
//! the environment is asked for. Of each one line is printed, PLACE=ANSWER: `answers` or `silent`; of the proxy its status and the rest of that line, or
//! `silent`.

use std::fs;
use std::io::{self, Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket};
use std::thread;
use std::time::Duration;

/// How long a place may take to answer.
const ANSWER: Duration = Duration::from_secs(2);
/// The proxy asks the gateway, which may have to look for a name.
const ANSWER_OF_THE_PROXY: Duration = Duration::from_secs(15);
/// Longest first line that is read of the proxy's answer, in bytes.
const LINE: usize = 256;
/// A question for the servers of the root, which every name server answers, if only with a refusal (RFC 1035, 4.1).
const QUESTION: [u8; 17] = [0x50, 0x44, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0, 1];

/// Tries all places at once. `proxy` is where the proxy is, as in `HTTPS_PROXY`.
pub(crate) fn reach(places: &[&str], proxy: Option<&str>) -> Vec<String> {
    let told = |place: &str| format!("{place}={}", answer(place, proxy).unwrap_or_else(|_| "silent".to_owned()));
    thread::scope(|scope| {
        let asked: Vec<_> = places.iter().map(|place| scope.spawn(move || told(place))).collect();
        asked.into_iter().filter_map(|thread| thread.join().ok()).collect()
    })
}

fn answer(place: &str, proxy: Option<&str>) -> io::Result<String> {
    let address = |text: &str| text.parse::<SocketAddr>().map_err(io::Error::other);
    if place == "resolver" {
        let servers = servers(&fs::read_to_string("/etc/resolv.conf").unwrap_or_default());
        let answers = servers.into_iter().any(|server| ask_dns(server).is_ok());
        return Ok(if answers { "answers" } else { "silent" }.to_owned());
    }
    let answers = match place.split_once("://") {
        Some(("tcp", place)) => TcpStream::connect_timeout(&address(place)?, ANSWER).map(|_| ()),
        Some(("dns", place)) => ask_dns(address(place)?),
        Some(("proxy", authority)) => {
            let proxy = proxy.and_then(|proxy| proxy.strip_prefix("http://")).ok_or_else(|| io::Error::other("no proxy"))?;
            return ask_proxy(address(proxy.trim_end_matches('/'))?, authority);
        }
        _ => Err(io::Error::other("no place")),
    };
    answers.map(|()| "answers".to_owned())
}

/// The name servers of resolv.conf(5): where it names none, the one of this machine.
fn servers(resolver: &str) -> Vec<SocketAddr> {
    let named = resolver.lines().filter_map(|line| line.trim().strip_prefix("nameserver")?.trim().parse::<IpAddr>().ok());
    let mut servers: Vec<SocketAddr> = named.map(|server| SocketAddr::new(server, 53)).collect();
    if servers.is_empty() {
        servers.push((Ipv4Addr::LOCALHOST, 53).into());
    }
    servers
}

fn ask_dns(server: SocketAddr) -> io::Result<()> {
    let here: SocketAddr = if server.is_ipv4() { (Ipv4Addr::UNSPECIFIED, 0).into() } else { (Ipv6Addr::UNSPECIFIED, 0).into() };
    let socket = UdpSocket::bind(here)?;
    socket.set_read_timeout(Some(ANSWER))?;
    socket.connect(server)?;
    socket.send(&QUESTION)?;
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
        let told = reach(&places, None);
        let answers: Vec<&str> = told.iter().map(|line| line.rsplit_once('=').unwrap().1).collect();
        assert_eq!(answers, ["answers", "silent", "answers", "silent", "silent"]);
        assert_eq!(answering.join().unwrap(), QUESTION.len());
    }

    #[test]
    fn the_name_servers_of_a_sandbox_are_those_of_its_file() {
        let named = |text: &str| servers(text).iter().map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!(named("search svc\nnameserver 10.0.0.1\n nameserver fd00::1\nnameserver x\n"), ["10.0.0.1:53", "[fd00::1]:53"]);
        assert_eq!(named(""), ["127.0.0.1:53"]);
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
        let told = reach(&["proxy://[::1]:443"], Some(&format!("http://{address}")));
        assert_eq!(told, ["proxy://[::1]:443=403 NotGranted"]);
        assert_eq!(serving.join().unwrap(), "CONNECT [::1]:443 HTTP/1.1\r\nHost: [::1]:443\r\n\r\n");
        assert_eq!(reach(&["proxy://a:1"], None), ["proxy://a:1=silent"]);
    }
}
