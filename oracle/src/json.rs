//! JSON as RFC 8259 writes it, read in the plainest way, with the text of its numbers kept.

/// A JSON value.
#[derive(Clone, Debug, PartialEq)]
pub enum Json<'a> {
    /// `null`
    Null,
    /// `true` or `false`
    Bool(bool),
    /// A number, as it was written.
    Number(&'a str),
    /// A string, its escapes resolved.
    String(String),
    /// An array.
    Array(Vec<Json<'a>>),
    /// An object, with repeated keys as they came.
    Object(Vec<(String, Json<'a>)>),
}

/// How many arrays and objects may stand inside each other.
pub const LEVELS: usize = 127;

impl<'a> Json<'a> {
    /// The one value that the bytes are, if they are one.
    pub fn of(bytes: &'a [u8]) -> Option<Json<'a>> {
        let mut parser = Parser { text: std::str::from_utf8(bytes).ok()?, at: 0 };
        let value = parser.value(0)?;
        parser.space();
        (parser.at == bytes.len()).then_some(value)
    }

    /// What a JSON pointer's tokens lead to. A repeated key: the last one counts.
    pub fn find(&self, tokens: &[String]) -> Option<&Json<'a>> {
        let [token, rest @ ..] = tokens else { return Some(self) };
        let inner = match self {
            Json::Object(fields) => &fields.iter().rev().find(|(key, _)| key == token)?.1,
            Json::Array(items) => {
                let index = token.bytes().all(|b| b.is_ascii_digit()) && (token == "0" || !token.starts_with('0'));
                items.get(index.then(|| token.parse::<usize>().ok())??)?
            }
            _ => return None,
        };
        inner.find(rest)
    }
}

struct Parser<'a> {
    text: &'a str,
    at: usize,
}

impl<'a> Parser<'a> {
    fn peek(&self) -> Option<u8> {
        self.text.as_bytes().get(self.at).copied()
    }

    fn take(&mut self, byte: u8) -> Option<()> {
        (self.peek()? == byte).then(|| self.at += 1)
    }

    fn space(&mut self) {
        while let Some(b' ' | b'\t' | b'\n' | b'\r') = self.peek() {
            self.at += 1;
        }
    }

    fn word(&mut self, word: &str, value: Json<'a>) -> Option<Json<'a>> {
        self.text[self.at..].starts_with(word).then(|| {
            self.at += word.len();
            value
        })
    }

    fn value(&mut self, levels: usize) -> Option<Json<'a>> {
        self.space();
        match self.peek()? {
            b'{' if levels < LEVELS => self.object(levels + 1),
            b'[' if levels < LEVELS => self.array(levels + 1),
            b'"' => Some(Json::String(self.string()?)),
            b'n' => self.word("null", Json::Null),
            b't' => self.word("true", Json::Bool(true)),
            b'f' => self.word("false", Json::Bool(false)),
            b'-' | b'0'..=b'9' => self.number(),
            _ => None,
        }
    }

    fn object(&mut self, levels: usize) -> Option<Json<'a>> {
        self.take(b'{')?;
        let mut fields = Vec::new();
        self.space();
        while self.peek()? != b'}' {
            if !fields.is_empty() {
                self.take(b',')?;
                self.space();
            }
            let key = self.string()?;
            self.space();
            self.take(b':')?;
            fields.push((key, self.value(levels)?));
            self.space();
        }
        self.take(b'}')?;
        Some(Json::Object(fields))
    }

    fn array(&mut self, levels: usize) -> Option<Json<'a>> {
        self.take(b'[')?;
        let mut items = Vec::new();
        self.space();
        while self.peek()? != b']' {
            if !items.is_empty() {
                self.take(b',')?;
            }
            items.push(self.value(levels)?);
            self.space();
        }
        self.take(b']')?;
        Some(Json::Array(items))
    }

    fn number(&mut self) -> Option<Json<'a>> {
        let start = self.at;
        let _sign = self.take(b'-');
        if self.take(b'0').is_none() {
            self.digits()?;
        }
        if self.take(b'.').is_some() {
            self.digits()?;
        }
        if let Some(b'e' | b'E') = self.peek() {
            self.at += 1;
            if let Some(b'+' | b'-') = self.peek() {
                self.at += 1;
            }
            self.digits()?;
        }
        let text = &self.text[start..self.at];
        text.parse::<f64>().ok()?.is_finite().then_some(Json::Number(text))
    }

    fn digits(&mut self) -> Option<()> {
        let start = self.at;
        while self.peek().is_some_and(|b| b.is_ascii_digit()) {
            self.at += 1;
        }
        (self.at > start).then_some(())
    }

    fn string(&mut self) -> Option<String> {
        self.take(b'"')?;
        let mut string = String::new();
        loop {
            let rest = &self.text[self.at..];
            let plain = rest.find(|c| c == '"' || c == '\\' || c < ' ')?;
            string.push_str(&rest[..plain]);
            self.at += plain;
            match self.peek()? {
                b'"' => {
                    self.at += 1;
                    return Some(string);
                }
                b'\\' => string.push(self.escape()?),
                _control => return None,
            }
        }
    }

    fn escape(&mut self) -> Option<char> {
        self.take(b'\\')?;
        let letter = self.peek()?;
        self.at += 1;
        Some(match letter {
            b'"' | b'\\' | b'/' => char::from(letter),
            b'b' => '\u{8}',
            b'f' => '\u{c}',
            b'n' => '\n',
            b'r' => '\r',
            b't' => '\t',
            b'u' => match self.hex()? {
                high @ 0xd800..0xdc00 => {
                    self.take(b'\\')?;
                    self.take(b'u')?;
                    let low = self.hex()?.checked_sub(0xdc00).filter(|low| *low < 0x400)?;
                    char::from_u32(0x10000 + ((high - 0xd800) << 10) + low)?
                }
                code => char::from_u32(code)?,
            },
            _ => return None,
        })
    }

    fn hex(&mut self) -> Option<u32> {
        let digits = self.text.get(self.at..self.at + 4)?;
        self.at += 4;
        digits.bytes().all(|b| b.is_ascii_hexdigit()).then(|| u32::from_str_radix(digits, 16).ok())?
    }
}
