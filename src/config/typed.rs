//! From the tree to the types: a serde deserializer whose mistakes keep their place and their kind.
//!
//! toml's own would do, but for three things: its errors are sentences about Rust types, a section's first mistake hides
//! the others, and an enum that is told apart by a key (`type = "kafka"`) loses line and column in serde's own way.
#![allow(clippy::result_large_err, reason = "a fault carries its place and is rare; configurations are read once")]

use super::report::Place;
use super::tree::{Entry, Node, Value};
use serde::de::value::StrDeserializer;
use serde::de::{self, DeserializeSeed, Deserializer, EnumAccess, Expected, MapAccess, SeqAccess, Unexpected};
use serde::de::{VariantAccess, Visitor};
use std::fmt::{self, Display};

/// The enums whose variant stands in the key `type`, beside the variant's own keys.
const TAGGED: [&str; 2] = ["SourceSettings", "SinkSettings"];

/// A mistake, where it is, and which value has to go for the rest to be read.
#[derive(Debug)]
pub struct Fault {
    /// What kind of mistake it is.
    pub kind: Kind,
    /// Where it is drawn.
    pub place: Place,
    /// The value that it is about, or, for a missing key, the table that lacks it.
    pub path: Option<String>,
}

/// Kinds of mistakes.
#[derive(Debug)]
pub enum Kind {
    /// A key that there is not.
    UnknownKey { key: String, known: &'static [&'static str] },
    /// A key that must be there.
    MissingKey { key: &'static str },
    /// A value of the wrong type.
    WrongType { wants: String, found: String, value: Value },
    /// A text that is none of those known.
    UnknownName { found: String, known: &'static [&'static str] },
    /// Anything else, in its own words.
    Other(String),
}

impl Fault {
    fn new(kind: Kind) -> Self {
        Self { kind, place: Place::NOWHERE, path: None }
    }
    /// The mistake was made here, unless it is known more exactly.
    fn at(mut self, place: &Place, node: &Node) -> Self {
        if self.path.is_none() {
            self.path = Some(node.path.clone());
            self.place = place.clone();
            if let Kind::WrongType { value, .. } = &mut self.kind {
                *value = node.value.clone();
            }
            if let (Kind::Other(message), Value::String(text, true)) = (&mut self.kind, &node.value) {
                // What came from outside the file may be a secret.
                *message = message.replace(&format!("{text:?}"), "something else (not shown)");
            }
            if let (Kind::UnknownName { found, .. }, Value::String(_, true)) = (&mut self.kind, &node.value) {
                *found = "something else (not shown)".to_owned();
            }
        }
        self
    }
}

impl Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.kind)
    }
}

impl std::error::Error for Fault {}

impl de::Error for Fault {
    fn custom<T: Display>(message: T) -> Self {
        Self::new(Kind::Other(message.to_string()))
    }
    fn invalid_type(found: Unexpected<'_>, wants: &dyn Expected) -> Self {
        let (wants, found) = (in_words(&wants.to_string()), describe(found));
        Self::new(Kind::WrongType { wants, found, value: Value::Bool(false) })
    }
    fn invalid_value(found: Unexpected<'_>, wants: &dyn Expected) -> Self {
        Self::invalid_type(found, wants)
    }
    fn invalid_length(length: usize, wants: &dyn Expected) -> Self {
        let (wants, found) = (in_words(&wants.to_string()), format!("a list of {length}"));
        Self::new(Kind::WrongType { wants, found, value: Value::Bool(false) })
    }
    fn unknown_variant(found: &str, known: &'static [&'static str]) -> Self {
        Self::new(Kind::UnknownName { found: format!("{found:?}"), known })
    }
    fn unknown_field(key: &str, known: &'static [&'static str]) -> Self {
        Self::new(Kind::UnknownKey { key: key.to_owned(), known })
    }
    fn missing_field(key: &'static str) -> Self {
        Self::new(Kind::MissingKey { key })
    }
}

/// serde's words for what it wants, in those of a person.
fn in_words(wants: &str) -> String {
    match wants {
        "f64" => "a number",
        "u8" | "u16" | "u32" | "u64" | "usize" | "i64" => "a whole number that is not negative",
        "a boolean" => "true or false",
        "a sequence" => "a list",
        "a map" => "a table",
        "path string" => "a path",
        "socket address" => "an address and a port, such as \"127.0.0.1:7070\"",
        "an array of length 2" => "a list of two numbers",
        _ if wants.starts_with("struct ") => "a table",
        _ => wants,
    }
    .to_owned()
}

fn describe(found: Unexpected<'_>) -> String {
    match found {
        Unexpected::Str(text) => format!("the string {text:?}"),
        Unexpected::Signed(number) => number.to_string(),
        Unexpected::Unsigned(number) => number.to_string(),
        Unexpected::Float(number) => format!("{number:?}"),
        Unexpected::Bool(flag) => flag.to_string(),
        Unexpected::Seq => "a list".to_owned(),
        Unexpected::Map => "a table".to_owned(),
        other => other.to_string(),
    }
}

impl<'de> Node {
    fn any<V: Visitor<'de>>(&'de self, visitor: V) -> Result<V::Value, Fault> {
        match &self.value {
            Value::String(_, true) => visitor.visit_str(self.text()).map_err(hide),
            Value::String(text, false) => visitor.visit_str(text),
            Value::Integer(number) => visitor.visit_i64(*number),
            Value::Float(number) => visitor.visit_f64(*number),
            Value::Bool(flag) => visitor.visit_bool(*flag),
            Value::Date(_) => Err(de::Error::invalid_type(Unexpected::Other("a date"), &visitor)),
            Value::Array(nodes) => visitor.visit_seq(Items { nodes: nodes.iter() }),
            Value::Table(entries) => visitor.visit_map(Entries { entries: entries.iter(), next: None, skip: None }),
        }
        .map_err(|fault| fault.at(&self.place, self))
    }

    fn text(&self) -> &str {
        match &self.value {
            Value::String(text, _) => text,
            _ => "",
        }
    }

    /// A text from outside the file that stands where a number or a flag is wanted: an environment has only texts.
    fn outside<T: std::str::FromStr>(&self) -> Option<T> {
        match &self.value {
            Value::String(text, true) => text.trim().parse().ok(),
            _ => None,
        }
    }
}

/// A string that came from outside is not repeated in a message.
fn hide(mut fault: Fault) -> Fault {
    if let Kind::WrongType { found, .. } = &mut fault.kind {
        *found = "a string (not shown)".to_owned();
    }
    fault
}

macro_rules! numbers {
    ($($method:ident $visit:ident $type:ty,)*) => {
        $(fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
            match self.outside::<$type>() {
                Some(value) => visitor.$visit::<Fault>(value).map_err(|fault| fault.at(&self.place, self)),
                None => self.any(visitor),
            }
        })*
    };
}

impl<'de> Deserializer<'de> for &'de Node {
    type Error = Fault;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        self.any(visitor)
    }
    numbers! {
        deserialize_bool visit_bool bool,
        deserialize_u8 visit_u64 u64,
        deserialize_u16 visit_u64 u64,
        deserialize_u32 visit_u64 u64,
        deserialize_u64 visit_u64 u64,
        deserialize_i64 visit_i64 i64,
        deserialize_f64 visit_f64 f64,
    }
    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        visitor.visit_some(self).map_err(|fault| fault.at(&self.place, self))
    }
    fn deserialize_newtype_struct<V: Visitor<'de>>(self, _: &'static str, visitor: V) -> Result<V::Value, Fault> {
        visitor.visit_newtype_struct(self).map_err(|fault| fault.at(&self.place, self))
    }
    fn deserialize_enum<V: Visitor<'de>>(
        self,
        name: &'static str,
        known: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Fault> {
        self.variant(name, known, visitor).map_err(|fault| fault.at(&self.place, self))
    }
    serde::forward_to_deserialize_any! {
        i8 i16 i32 i128 u128 f32 char str string bytes byte_buf unit unit_struct seq tuple tuple_struct map struct
        identifier ignored_any
    }
}

impl<'de> Node {
    fn variant<V: Visitor<'de>>(
        &'de self,
        name: &'static str,
        known: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Fault> {
        let wrong = || {
            let known: Vec<_> = known.iter().map(|name| format!("{name:?}")).collect();
            let (wants, found) = (format!("one of {}", known.join(", ")), self.in_short());
            Fault::new(Kind::WrongType { wants, found, value: self.value.clone() })
        };
        let entries = match &self.value {
            Value::String(text, _) => {
                return visitor.visit_enum(Variant { name: text, named: self, place: &self.place, content: None });
            }
            Value::Table(entries) => entries,
            _ => return Err(wrong()),
        };
        if TAGGED.contains(&name) {
            let tag = entries.get("type").ok_or_else(|| Fault::new(Kind::MissingKey { key: "type" }))?;
            let Value::String(text, _) = &tag.node.value else {
                return Err(Fault::new(Kind::WrongType {
                    wants: "a string".into(),
                    found: tag.node.in_short(),
                    value: tag.node.value.clone(),
                })
                .at(&tag.node.place, &tag.node));
            };
            let content = Some((self, Some("type")));
            return visitor.visit_enum(Variant { name: text, named: &tag.node, place: &tag.node.place, content });
        }
        let mut keys = entries.iter();
        let choices = known.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ");
        match (keys.next(), keys.next()) {
            (Some((key, entry)), None) => {
                let content = Some((&entry.node, None));
                visitor.visit_enum(Variant { name: key, named: &entry.node, place: &entry.key, content })
            }
            (Some((one, _)), Some((other, entry))) => Err(Fault::new(Kind::Other(format!(
                "has both `{one}` and `{other}`; it takes exactly one of {choices}"
            )))
            .at(&entry.key, self)),
            _ => Err(Fault::new(Kind::Other(format!("is empty; it takes exactly one of {choices}")))),
        }
    }

    fn in_short(&self) -> String {
        match &self.value {
            Value::String(_, true) => "a string (not shown)".to_owned(),
            Value::String(text, false) => format!("the string {text:?}"),
            Value::Integer(number) => number.to_string(),
            Value::Float(number) => format!("{number:?}"),
            Value::Bool(flag) => flag.to_string(),
            Value::Date(_) => "a date".to_owned(),
            Value::Array(_) => "a list".to_owned(),
            Value::Table(_) => "a table".to_owned(),
        }
    }
}

struct Items<'de> {
    nodes: std::slice::Iter<'de, Node>,
}

impl<'de> SeqAccess<'de> for Items<'de> {
    type Error = Fault;
    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, Fault> {
        self.nodes.next().map(|node| seed.deserialize(node)).transpose()
    }
    fn size_hint(&self) -> Option<usize> {
        Some(self.nodes.len())
    }
}

struct Entries<'de> {
    entries: std::collections::btree_map::Iter<'de, String, Entry>,
    next: Option<&'de Node>,
    skip: Option<&'static str>,
}

impl<'de> MapAccess<'de> for Entries<'de> {
    type Error = Fault;
    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, Fault> {
        let skip = self.skip;
        let Some((key, entry)) = self.entries.find(|(key, _)| skip != Some(&***key)) else { return Ok(None) };
        self.next = Some(&entry.node);
        let key: StrDeserializer<'_, Fault> = de::IntoDeserializer::into_deserializer(&**key);
        seed.deserialize(key).map(Some).map_err(|fault| fault.at(&entry.key, &entry.node))
    }
    fn next_value_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<T::Value, Fault> {
        match self.next.take() {
            Some(node) => seed.deserialize(node).map_err(|fault| fault.at(&node.place, node)),
            None => Err(Fault::new(Kind::Other("a value was asked for before its key".to_owned()))),
        }
    }
}

/// A variant's name, and the table that holds what belongs to it (without the key that named it).
struct Variant<'de> {
    name: &'de str,
    named: &'de Node,
    place: &'de Place,
    content: Option<(&'de Node, Option<&'static str>)>,
}

impl<'de> EnumAccess<'de> for Variant<'de> {
    type Error = Fault;
    type Variant = Self;
    fn variant_seed<V: DeserializeSeed<'de>>(self, seed: V) -> Result<(V::Value, Self), Fault> {
        let name: StrDeserializer<'_, Fault> = de::IntoDeserializer::into_deserializer(self.name);
        let external = matches!(self.content, Some((_, None)));
        match seed.deserialize(name) {
            Ok(variant) => Ok((variant, self)),
            Err(Fault { kind: Kind::UnknownName { known, .. }, .. }) if external => {
                let kind = Kind::UnknownKey { key: self.name.to_owned(), known };
                Err(Fault::new(kind).at(self.place, self.named))
            }
            Err(fault) => Err(fault.at(self.place, self.named)),
        }
    }
}

impl<'de> VariantAccess<'de> for Variant<'de> {
    type Error = Fault;
    fn unit_variant(self) -> Result<(), Fault> {
        Ok(())
    }
    fn newtype_variant_seed<T: DeserializeSeed<'de>>(self, seed: T) -> Result<T::Value, Fault> {
        match self.content {
            Some((node, skip)) => seed.deserialize(Content { node, skip }),
            None => Err(Fault::new(Kind::Other(format!("`{}` wants a value of its own", self.name)))),
        }
    }
    fn tuple_variant<V: Visitor<'de>>(self, _: usize, visitor: V) -> Result<V::Value, Fault> {
        Err(de::Error::invalid_type(Unexpected::TupleVariant, &visitor))
    }
    fn struct_variant<V: Visitor<'de>>(self, _: &'static [&'static str], visitor: V) -> Result<V::Value, Fault> {
        Err(de::Error::invalid_type(Unexpected::StructVariant, &visitor))
    }
}

/// A variant's content: its node, without the key that told the variant.
struct Content<'de> {
    node: &'de Node,
    skip: Option<&'static str>,
}

impl<'de> Deserializer<'de> for Content<'de> {
    type Error = Fault;
    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        match &self.node.value {
            Value::Table(entries) if self.skip.is_some() => visitor
                .visit_map(Entries { entries: entries.iter(), next: None, skip: self.skip })
                .map_err(|fault| fault.at(&self.node.place, self.node)),
            _ => self.node.any(visitor),
        }
    }
    serde::forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf option unit unit_struct
        newtype_struct seq tuple tuple_struct map struct enum identifier ignored_any
    }
}
