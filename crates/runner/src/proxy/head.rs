//! The head of a request to the proxy: read, and written for the gateway with the token. Pure.

/// Longest head, in bytes. With the token it must fit into what the gateway reads.
const LONGEST: usize = 16 << 10;
/// Longest target: a name has at most 253 bytes.
const LONGEST_TARGET: usize = 512;

/// What was read of a head so far.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Head<'a> {
    /// There is more to come.
    Part,
    /// The target of a CONNECT, and what followed the head.
    Connect { target: &'a str, rest: &'a [u8] },
    /// A request for `http://`: its first line, what else there is of the head with the empty line at its end, and what followed.
    Http { line: &'a [u8], fields: &'a [u8], rest: &'a [u8] },
    /// Not for this proxy.
    Other,
}

pub(super) fn read(bytes: &[u8]) -> Head<'_> {
    let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") else {
        return if bytes.len() >= LONGEST { Head::Other } else { Head::Part };
    };
    let line = bytes.split(|byte| *byte == b'\r').next().unwrap_or_default();
    let (head, rest) = bytes.split_at(end + 4);
    if is_for_http(line) && head.len() <= LONGEST {
        return Head::Http { line, fields: &head[line.len() + 2..], rest };
    }
    let line = std::str::from_utf8(line).ok().and_then(|line| line.strip_prefix("CONNECT "));
    // Python's http.client says 1.0 up to its version 3.11. To the gateway all of it is 1.1.
    let target = line.and_then(|line| line.strip_suffix(" HTTP/1.1").or_else(|| line.strip_suffix(" HTTP/1.0")));
    // What it means the gateway decides; here it must not become more than one word of one line.
    match target.filter(|target| target.bytes().all(|byte| byte.is_ascii_graphic()) && (1..=LONGEST_TARGET).contains(&target.len())) {
        Some(target) => Head::Connect { target, rest },
        None => Head::Other,
    }
}

/// Whether it is `METHOD http://… HTTP/1.…`, in one line. What else it may be the gateway refuses.
fn is_for_http(line: &[u8]) -> bool {
    let mut words = line.split(|byte| *byte == b' ');
    let (Some(_), Some(target), Some(version), None) = (words.next(), words.next(), words.next(), words.next()) else { return false };
    let is_http = target.get(..7).is_some_and(|scheme| scheme.eq_ignore_ascii_case(b"http://"));
    is_http && version.starts_with(b"HTTP/1.") && line.iter().all(|byte| *byte == b' ' || byte.is_ascii_graphic())
}

/// A request for `http://` as the gateway gets it: with the token, and none that the script may have set.
pub(super) fn with_token(line: &[u8], fields: &[u8], token: &str) -> Vec<u8> {
    let mut head = [line, b"\r\nProxy-Authorization: Bearer ", token.as_bytes(), b"\r\n"].concat();
    for field in fields.split_inclusive(|byte| *byte == b'\n') {
        let name = field.split(|byte| *byte == b':').next().unwrap_or_default();
        if !name.trim_ascii().eq_ignore_ascii_case(b"proxy-authorization") {
            head.extend_from_slice(field);
        }
    }
    head
}

/// The request as the gateway gets it. What else the script has said, a token of its own among it, does not go on.
pub(super) fn for_the_gateway(target: &str, token: &str) -> String {
    format!("CONNECT {target} HTTP/1.1\r\nHost: {target}\r\nProxy-Authorization: Bearer {token}\r\n\r\n")
}

/// An answer of the proxy itself.
pub(super) fn answer(status: &str, reason: &str, message: &str) -> String {
    let body = format!("{{\"reason\":\"{reason}\",\"message\":\"{message}\"}}");
    let length = body.len();
    format!("HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_head_is_a_connect_or_nothing_for_us() {
        assert_eq!(read(b"CONNECT a.example:443 HTTP/1.1\r\nHost: a\r\n"), Head::Part);
        let whole = b"CONNECT a.example:443 HTTP/1.1\r\nProxy-Authorization: Bearer mine\r\n\r\nrest";
        assert_eq!(read(whole), Head::Connect { target: "a.example:443", rest: b"rest" });
        let older = b"CONNECT a.example:443 HTTP/1.0\r\n\r\n";
        assert_eq!(read(older), Head::Connect { target: "a.example:443", rest: b"" });
        let empty = b"CONNECT a.example:443 HTTP/1.1\r\n\r\n";
        assert_eq!(read(empty), Head::Connect { target: "a.example:443", rest: b"" });
        for other in [
            &b"GET / HTTP/1.1\r\n\r\n"[..],
            b"GET https://a.example/ HTTP/1.1\r\n\r\n",
            b"GET http://a.example/ HTTP/2.0\r\n\r\n",
            b"GET http://a.example/\nX:b HTTP/1.1\r\n\r\n",
            b"GET http://a.example/ b HTTP/1.1\r\n\r\n",
            b"PRI * HTTP/2.0\r\n\r\n",
            b"CONNECT a.example:443 HTTP/2.0\r\n\r\n",
            b"CONNECT a.example:443 HTTP/1.\r\n\r\n",
            b"CONNECT  HTTP/1.1\r\n\r\n",
            b"CONNECT a b HTTP/1.1\r\n\r\n",
            b"CONNECT a\nX:b HTTP/1.1\r\n\r\n",
            b"CONNECT a\tb HTTP/1.1\r\n\r\n",
            b"CONNECT \xff HTTP/1.1\r\n\r\n",
            b"\r\n\r\n",
            &[b'x'; LONGEST],
        ] {
            assert_eq!(read(other), Head::Other, "{:?}", String::from_utf8_lossy(&other[..other.len().min(40)]));
        }
    }

    #[test]
    fn a_request_for_http_gets_the_token_and_loses_the_scripts_own() {
        let whole = b"GET HTTP://a.example/x HTTP/1.0\r\nHost: a\r\nPROXY-authorization : Bearer mine\r\nX: y\r\n\r\nrest";
        let Head::Http { line, fields, rest } = read(whole) else { panic!("{:?}", read(whole)) };
        assert_eq!((line, rest), (&b"GET HTTP://a.example/x HTTP/1.0"[..], &b"rest"[..]));
        let told = String::from_utf8(with_token(line, fields, "t")).unwrap();
        assert_eq!(told, "GET HTTP://a.example/x HTTP/1.0\r\nProxy-Authorization: Bearer t\r\nHost: a\r\nX: y\r\n\r\n");
        let Head::Http { line, fields, .. } = read(b"GET http://a.example/ HTTP/1.1\r\n\r\n") else { panic!("no request") };
        assert_eq!(with_token(line, fields, "t"), b"GET http://a.example/ HTTP/1.1\r\nProxy-Authorization: Bearer t\r\n\r\n");
    }
}
