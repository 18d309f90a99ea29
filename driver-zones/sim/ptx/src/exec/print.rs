//! What kernels print: formatted here, kept until the caller takes it.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Texts that kernels printed, oldest first. As in a GPU's buffer, the oldest go
/// when it is full.
#[derive(Debug)]
pub struct PrintBuffer {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    capacity: usize,
    texts: VecDeque<Vec<u8>>,
    bytes: usize,
    lost: u64,
}

impl PrintBuffer {
    /// A buffer of that many bytes.
    #[must_use]
    pub fn new(capacity: usize) -> Self {
        Self { state: Mutex::new(State { capacity, ..State::default() }) }
    }

    /// Gives the buffer another size.
    pub fn set_capacity(&self, capacity: usize) {
        self.state().capacity = capacity;
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds the whole text of one call.
    pub(crate) fn add(&self, text: Vec<u8>) {
        // An empty text takes room too, so that their number is bounded.
        const LEAST: usize = 16;
        let cost = |text: &Vec<u8>| text.len().max(LEAST);
        let mut state = self.state();
        state.bytes += cost(&text);
        state.texts.push_back(text);
        while state.bytes > state.capacity {
            let Some(oldest) = state.texts.pop_front() else { break };
            state.bytes -= cost(&oldest);
            state.lost += 1;
        }
    }

    /// Takes everything that was printed so far, and how many texts were lost.
    #[must_use]
    pub fn take(&self) -> (Vec<u8>, u64) {
        let mut state = self.state();
        let (texts, lost) = (std::mem::take(&mut state.texts), std::mem::take(&mut state.lost));
        state.bytes = 0;
        drop(state);
        (texts.into_iter().flatten().collect(), lost)
    }
}

/// The arguments of one call, in order.
pub(super) trait Arguments {
    type Error;
    /// The next argument of 4 or 8 bytes.
    fn next(&mut self, bytes: u8) -> Result<u64, Self::Error>;
    /// The text at an address.
    fn text(&mut self, address: u64) -> Result<Vec<u8>, Self::Error>;
}

/// A conversion of a format: what is between `%` and its letter.
#[derive(Clone, Copy, Default)]
struct Spec {
    left: bool,
    plus: bool,
    space: bool,
    alternate: bool,
    zero: bool,
    width: usize,
    precision: Option<usize>,
    /// Whether an integer has 64 bits.
    long: bool,
}

/// Most width or precision of a number.
const WIDEST: usize = 512;

/// Formats as `printf` does; returns the text, of at most `longest` bytes, and how
/// many arguments it took.
pub(super) fn format<A: Arguments>(
    format: &[u8],
    longest: usize,
    arguments: &mut A,
) -> Result<(Vec<u8>, u32), A::Error> {
    let mut out = Vec::new();
    let mut count = 0;
    let mut rest = format;
    while let Some((byte, after)) = rest.split_first() {
        rest = after;
        if *byte != b'%' {
            out.push(*byte);
        } else if let Some(after) = rest.strip_prefix(b"%") {
            out.push(b'%');
            rest = after;
        } else {
            let spec = parse(&mut rest, arguments)?;
            let Some((letter, after)) = rest.split_first() else { break };
            rest = after;
            if let Some(text) = convert(spec, *letter, arguments)? {
                out.extend(text);
                count += 1;
            } else {
                out.extend([b'%', *letter]);
            }
        }
        if out.len() >= longest {
            out.truncate(longest);
            break;
        }
    }
    Ok((out, count))
}

fn parse<A: Arguments>(rest: &mut &[u8], arguments: &mut A) -> Result<Spec, A::Error> {
    let mut spec = Spec::default();
    while let Some((flag, after)) = rest.split_first() {
        match flag {
            b'-' => spec.left = true,
            b'+' => spec.plus = true,
            b' ' => spec.space = true,
            b'#' => spec.alternate = true,
            b'0' => spec.zero = true,
            _ => break,
        }
        *rest = after;
    }
    let width = number(rest, arguments)?.unwrap_or(0);
    spec.left |= width < 0;
    spec.width = usize::try_from(width.unsigned_abs()).unwrap_or(WIDEST).min(WIDEST);
    if let Some(after) = rest.strip_prefix(b".") {
        *rest = after;
        let precision = number(rest, arguments)?.unwrap_or(0);
        spec.precision = usize::try_from(precision).ok().map(|precision| precision.min(WIDEST));
    }
    while let Some((size, after)) = rest.split_first() {
        match size {
            b'l' | b'j' | b'z' | b't' => spec.long = true,
            b'h' | b'L' => {}
            _ => break,
        }
        *rest = after;
    }
    Ok(spec)
}

/// Digits, or `*` for an argument.
fn number<A: Arguments>(rest: &mut &[u8], arguments: &mut A) -> Result<Option<i32>, A::Error> {
    if let Some(after) = rest.strip_prefix(b"*") {
        *rest = after;
        let bits = arguments.next(4)?;
        #[expect(clippy::cast_possible_truncation, reason = "an argument of 4 bytes")]
        return Ok(Some((bits as u32).cast_signed()));
    }
    let digits = rest.iter().take_while(|byte| byte.is_ascii_digit()).count();
    let (number, after) = rest.split_at(digits);
    *rest = after;
    let value = number
        .iter()
        .fold(0_i32, |sum, digit| sum.saturating_mul(10).saturating_add(i32::from(digit - b'0')));
    Ok((digits > 0).then_some(value))
}

/// The text of one argument; none for a letter that means nothing.
fn convert<A: Arguments>(
    spec: Spec,
    letter: u8,
    arguments: &mut A,
) -> Result<Option<Vec<u8>>, A::Error> {
    let bytes = if spec.long { 8 } else { 4 };
    let unused = if spec.long { 0 } else { 32 };
    Ok(Some(match letter {
        b'd' | b'i' => {
            let value = (arguments.next(bytes)? << unused).cast_signed() >> unused;
            let digits = spec.digits(value.unsigned_abs().to_string(), value == 0);
            spec.padded(spec.sign(value < 0), &digits, spec.precision.is_none())
        }
        b'u' | b'x' | b'X' | b'o' => {
            let value = arguments.next(bytes)?;
            let (prefix, digits) = match letter {
                b'u' => ("", value.to_string()),
                b'x' => ("0x", format!("{value:x}")),
                b'X' => ("0X", format!("{value:X}")),
                _ => ("0", format!("{value:o}")),
            };
            let prefix = if spec.alternate && value != 0 { prefix } else { "" };
            spec.padded(prefix, &spec.digits(digits, value == 0), spec.precision.is_none())
        }
        b'p' => spec.padded("", &format!("{:#x}", arguments.next(8)?), false),
        b'c' => {
            let byte = arguments.next(4)?.to_le_bytes()[0];
            spec.padded_bytes(b"", &[byte], false)
        }
        b's' => {
            let address = arguments.next(8)?;
            let mut text = arguments.text(address)?;
            text.truncate(spec.precision.unwrap_or(usize::MAX));
            spec.padded_bytes(b"", &text, false)
        }
        b'f' | b'F' | b'e' | b'E' | b'g' | b'G' | b'a' | b'A' => {
            let value = f64::from_bits(arguments.next(8)?);
            let text = spec.float(value.abs(), letter);
            spec.padded(spec.sign(value.is_sign_negative()), &text, value.is_finite())
        }
        _ => return Ok(None),
    }))
}

impl Spec {
    fn sign(self, negative: bool) -> &'static str {
        match (negative, self.plus, self.space) {
            (true, ..) => "-",
            (_, true, _) => "+",
            (_, _, true) => " ",
            _ => "",
        }
    }

    /// At least as many digits as the precision says; none for a zero of precision 0.
    fn digits(self, digits: String, zero: bool) -> String {
        match self.precision {
            Some(0) if zero => String::new(),
            Some(precision) => format!("{digits:0>precision$}"),
            None => digits,
        }
    }

    fn padded(self, prefix: &str, text: &str, zeros: bool) -> Vec<u8> {
        self.padded_bytes(prefix.as_bytes(), text.as_bytes(), zeros)
    }

    fn padded_bytes(self, prefix: &[u8], text: &[u8], zeros: bool) -> Vec<u8> {
        let fill = self.width.saturating_sub(prefix.len() + text.len());
        let (blanks, zeros, after) = match (self.left, self.zero && zeros) {
            (true, _) => (0, 0, fill),
            (false, true) => (0, fill, 0),
            (false, false) => (fill, 0, 0),
        };
        let repeat = |byte: u8, count: usize| vec![byte; count];
        [
            repeat(b' ', blanks),
            prefix.to_vec(),
            repeat(b'0', zeros),
            text.to_vec(),
            repeat(b' ', after),
        ]
        .concat()
    }

    /// A number without its sign.
    fn float(self, value: f64, letter: u8) -> String {
        let lower = letter.to_ascii_lowercase();
        let text = if !value.is_finite() {
            if value.is_nan() { "nan".to_owned() } else { "inf".to_owned() }
        } else {
            match lower {
                b'f' => format!("{value:.*}", self.precision.unwrap_or(6)),
                b'e' => exponential(value, self.precision.unwrap_or(6)),
                b'g' => self.shortest(value),
                _ => hexadecimal(value),
            }
        };
        if lower == letter { text } else { text.to_uppercase() }
    }

    /// `%g`: the shorter of two forms, without trailing zeros.
    fn shortest(self, value: f64) -> String {
        let precision = self.precision.unwrap_or(6).max(1);
        let scientific = exponential(value, precision - 1);
        let exponent = scientific.split_once('e').and_then(|(_, exponent)| exponent.parse().ok());
        let exponent: i32 = exponent.unwrap_or(0);
        let most = i32::try_from(precision).unwrap_or(i32::MAX);
        let trim = |text: &str| {
            if self.alternate || !text.contains('.') {
                return text.to_owned();
            }
            text.trim_end_matches('0').trim_end_matches('.').to_owned()
        };
        if exponent < -4 || exponent >= most {
            return match scientific.split_once('e') {
                Some((digits, exponent)) => format!("{}e{exponent}", trim(digits)),
                None => scientific,
            };
        }
        let places = usize::try_from(most - 1 - exponent).unwrap_or(0);
        trim(&format!("{value:.places$}"))
    }
}

/// As C writes it: the exponent has a sign and at least two digits.
fn exponential(value: f64, precision: usize) -> String {
    let text = format!("{value:.precision$e}");
    let Some((digits, exponent)) = text.split_once('e') else { return text };
    let (sign, exponent) = match exponent.strip_prefix('-') {
        Some(exponent) => ('-', exponent),
        None => ('+', exponent),
    };
    format!("{digits}e{sign}{exponent:0>2}")
}

/// `%a`: the exact bits.
fn hexadecimal(value: f64) -> String {
    let bits = value.to_bits();
    let (exponent, fraction) = (i64::try_from(bits >> 52).unwrap_or(0), bits & ((1 << 52) - 1));
    let (whole, exponent) = match (exponent, fraction) {
        (0, 0) => (0, 0),
        (0, _) => (0, -1022),
        _ => (1, exponent - 1023),
    };
    let digits = format!("{fraction:013x}");
    let digits = digits.trim_end_matches('0');
    let point = if digits.is_empty() { "" } else { "." };
    format!("0x{whole}{point}{digits}p{exponent:+}")
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use super::{Arguments, PrintBuffer, format};

    struct List<'a>(&'a [u64]);

    impl Arguments for List<'_> {
        type Error = Infallible;

        fn next(&mut self, _bytes: u8) -> Result<u64, Infallible> {
            let (first, rest) = self.0.split_first().expect("an argument");
            self.0 = rest;
            Ok(*first)
        }

        fn text(&mut self, address: u64) -> Result<Vec<u8>, Infallible> {
            Ok(format!("text {address}").into_bytes())
        }
    }

    fn check(text: &str, arguments: &[u64], expected: &str) {
        let Ok((out, count)) = format(text.as_bytes(), 200, &mut List(arguments));
        assert_eq!(String::from_utf8_lossy(&out), expected);
        assert_eq!(count, u32::try_from(arguments.len()).expect("a few"), "{text}");
    }

    #[test]
    fn numbers_and_texts_are_written_as_c_writes_them() {
        let minus = u64::from((-5_i32).cast_unsigned());
        check("%d|%5d|%-5d|%05d|%+d", &[minus, 42, 42, minus, 7], "-5|   42|42   |-0005|+7");
        check(
            "%u %x %#X %o %.3d",
            &[u64::from(u32::MAX), 255, 255, 8, 7],
            "4294967295 ff 0XFF 10 007",
        );
        check("%lld %llu", &[u64::MAX, u64::MAX], "-1 18446744073709551615");
        check("%s|%.4s|%c|%p", &[1, 2, 65, 4096], "text 1|text|A|0x1000");
        let bits = f64::to_bits;
        check(
            "%f %.2f %8.3f|%-8.1f|",
            &[bits(1.5), bits(-2.0), bits(3.25), bits(0.5)],
            "1.500000 -2.00    3.250|0.5     |",
        );
        check(
            "%e %g %g %g %G",
            &[bits(12345.678), bits(1e-5), bits(100.0), bits(1e20), bits(0.1)],
            "1.234568e+04 1e-05 100 1e+20 0.1",
        );
        check(
            "%a %f %05f",
            &[bits(1.5), bits(f64::NEG_INFINITY), bits(f64::NAN)],
            "0x1.8p+0 -inf   nan",
        );
        check("100%% %q", &[], "100% %q");
    }

    #[test]
    fn width_of_an_argument_and_an_open_end() {
        let Ok((out, _)) = format(b"%*d|%-*d|%", 200, &mut List(&[4, 7, 4, 7]));
        assert_eq!(out, b"   7|7   |");
        let Ok((out, _)) = format(b"%900d", 200, &mut List(&[1]));
        assert_eq!(out.len(), 200);
    }

    #[test]
    fn a_full_buffer_loses_its_oldest_texts() {
        let buffer = PrintBuffer::new(48);
        for text in ["one", "two", "three", "four"] {
            buffer.add(text.as_bytes().to_vec());
        }
        assert_eq!(buffer.take(), (b"twothreefour".to_vec(), 1));
        assert_eq!(buffer.take(), (Vec::new(), 0));
    }
}
