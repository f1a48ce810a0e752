//! Numbers with a checksum: card numbers and IBANs.

/// Spans of card numbers: 13 to 19 digits, in groups divided by single spaces or hyphens or not at all, of a known issuer, whose Luhn sum is right.
pub(crate) fn cards(text: &[u8]) -> Vec<(usize, usize)> {
    let groups = digit_groups(text);
    let mut spans = Vec::new();
    let mut index = 0;
    while index < groups.len() {
        match card_from(text, &groups[index..]) {
            Some(count) => {
                spans.push((groups[index].0, groups[index + count - 1].1));
                index += count;
            }
            None => index += 1,
        }
    }
    spans
}

/// How many groups, from the first on, are a card number together. The longest wins.
fn card_from(text: &[u8], groups: &[(usize, usize)]) -> Option<usize> {
    let mut digits = Vec::new();
    let mut best = None;
    for (count, (start, end)) in groups.iter().enumerate() {
        let divided_by = groups.get(count.wrapping_sub(1)).map(|before| &text[before.1..*start]);
        if count > 0 && !divided_by.is_some_and(|gap| matches!(gap, b" " | b"-")) {
            break;
        }
        digits.extend(text[*start..*end].iter().map(|byte| byte - b'0'));
        if digits.len() > 19 {
            break;
        }
        if digits.len() >= 13 && is_card(&digits) {
            best = Some(count + 1);
        }
    }
    best
}

/// Runs of digits that no letter, digit or decimal point touches.
fn digit_groups(text: &[u8]) -> Vec<(usize, usize)> {
    let mut groups = Vec::new();
    let mut at = 0;
    while at < text.len() {
        if !text[at].is_ascii_digit() {
            at += 1;
            continue;
        }
        let end = text[at..].iter().position(|byte| !byte.is_ascii_digit()).map_or(text.len(), |length| at + length);
        let before = at.checked_sub(1).map(|index| text[index]);
        let touches = |byte: Option<u8>| byte.is_some_and(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
        let is_fraction = before == Some(b'.') && at >= 2 && text[at - 2].is_ascii_digit();
        if !touches(before) && !touches(text.get(end).copied()) && !is_fraction {
            groups.push((at, end));
        }
        at = end;
    }
    groups
}

fn is_card(digits: &[u8]) -> bool {
    let number = digits.iter().take(4).fold(0_u32, |number, digit| number * 10 + u32::from(*digit));
    let has_issuer = match digits.len() {
        13 | 19 => number / 1000 == 4 || (digits.len() == 19 && is_long_issuer(number)),
        14 => matches!(number / 10, 300..=305) || matches!(number / 100, 36 | 38 | 39),
        15 => matches!(number / 100, 34 | 37),
        16 => {
            number / 1000 == 4 || matches!(number / 100, 51..=55) || matches!(number, 2221..=2720 | 3528..=3589) || is_long_issuer(number)
        }
        _ => false,
    };
    has_issuer && luhn(digits)
}

/// Discover and UnionPay.
fn is_long_issuer(number: u32) -> bool {
    number == 6011 || matches!(number / 10, 644..=649) || matches!(number / 100, 62 | 65)
}

fn luhn(digits: &[u8]) -> bool {
    let sum: u32 = digits
        .iter()
        .rev()
        .enumerate()
        .map(|(index, digit)| {
            let value = u32::from(*digit) << (index % 2);
            if value > 9 { value - 9 } else { value }
        })
        .sum();
    sum.is_multiple_of(10)
}

/// Length of an IBAN by its country, from the SWIFT registry.
const IBAN_LENGTHS: [(&[u8; 2], usize); 46] = [
    (b"AD", 24),
    (b"AE", 23),
    (b"AT", 20),
    (b"BE", 16),
    (b"BG", 22),
    (b"BR", 29),
    (b"CH", 21),
    (b"CY", 28),
    (b"CZ", 24),
    (b"DE", 22),
    (b"DK", 18),
    (b"EE", 20),
    (b"EG", 29),
    (b"ES", 24),
    (b"FI", 18),
    (b"FR", 27),
    (b"GB", 22),
    (b"GE", 22),
    (b"GI", 23),
    (b"GR", 27),
    (b"HR", 21),
    (b"HU", 28),
    (b"IE", 22),
    (b"IL", 23),
    (b"IS", 26),
    (b"IT", 27),
    (b"KW", 30),
    (b"LI", 21),
    (b"LT", 20),
    (b"LU", 20),
    (b"LV", 21),
    (b"MC", 27),
    (b"MT", 31),
    (b"NL", 18),
    (b"NO", 15),
    (b"PL", 28),
    (b"PT", 25),
    (b"QA", 29),
    (b"RO", 24),
    (b"SA", 24),
    (b"SE", 24),
    (b"SI", 19),
    (b"SK", 24),
    (b"SM", 27),
    (b"TR", 26),
    (b"UA", 29),
];

/// Spans of IBANs: of a known country and its length, in one piece or in groups divided by single spaces, whose remainder by 97 is 1.
pub(crate) fn ibans(text: &[u8]) -> Vec<(usize, usize)> {
    let mut spans = Vec::new();
    let mut at = 0;
    while at + 15 <= text.len() {
        let begins = at == 0 || !text[at - 1].is_ascii_alphanumeric();
        match begins.then(|| iban_end(text, at)).flatten() {
            Some(end) => {
                spans.push((at, end));
                at = end;
            }
            None => at += 1,
        }
    }
    spans
}

fn iban_end(text: &[u8], start: usize) -> Option<usize> {
    let country = [text[start].to_ascii_uppercase(), text[start + 1].to_ascii_uppercase()];
    let (_, length) = IBAN_LENGTHS.iter().find(|(code, _)| **code == country)?;
    let mut characters = Vec::with_capacity(*length);
    let mut at = start;
    while characters.len() < *length {
        let byte = *text.get(at)?;
        match byte {
            b' ' if characters.len() >= 4 && text.get(at + 1).is_some_and(u8::is_ascii_alphanumeric) => {}
            byte if byte.is_ascii_alphanumeric() => characters.push(byte.to_ascii_uppercase()),
            _ => return None,
        }
        at += 1;
    }
    let is_whole = !text.get(at).is_some_and(u8::is_ascii_alphanumeric);
    let has_check_digits = characters[2].is_ascii_digit() && characters[3].is_ascii_digit();
    characters.rotate_left(4);
    (is_whole && has_check_digits && remainder_by_97(&characters) == 1).then_some(at)
}

/// Letters count as 10 to 35.
fn remainder_by_97(characters: &[u8]) -> u32 {
    characters.iter().fold(0, |rest, byte| match byte {
        b'0'..=b'9' => (rest * 10 + u32::from(byte - b'0')) % 97,
        _ => (rest * 100 + u32::from(byte - b'A') + 10) % 97,
    })
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    fn texts(text: &str, spans: Vec<(usize, usize)>) -> Vec<&str> {
        spans.into_iter().map(|(start, end)| &text[start..end]).collect()
    }

    #[rstest]
    #[case("pay 4111 1111 1111 1111 now", &["4111 1111 1111 1111"])]
    #[case("order 1234 4111-1111-1111-1111.", &["4111-1111-1111-1111"])]
    #[case("378282246310005,5555555555554444", &["378282246310005", "5555555555554444"])]
    #[case("4111111111111112", &[])]
    #[case("x4111111111111111", &[])]
    #[case("0.4111111111111111", &[])]
    #[case("41111111111111110000", &[])]
    #[case("0000000000000000", &[])]
    #[case("1732464000000 1732464000001", &[])]
    fn cards_are_told_by_issuer_and_sum(#[case] text: &str, #[case] expected: &[&str]) {
        assert_eq!(texts(text, cards(text.as_bytes())), expected);
    }

    #[rstest]
    #[case("to DE89 3704 0044 0532 0130 00 please", &["DE89 3704 0044 0532 0130 00"])]
    #[case("GB82WEST12345698765432 OK", &["GB82WEST12345698765432"])]
    #[case("DE88370400440532013000", &[])]
    #[case("XDE89370400440532013000", &[])]
    #[case("DE893704004405320130001", &[])]
    #[case("DE89", &[])]
    fn ibans_are_told_by_country_length_and_remainder(#[case] text: &str, #[case] expected: &[&str]) {
        assert_eq!(texts(text, ibans(text.as_bytes())), expected);
    }
}
