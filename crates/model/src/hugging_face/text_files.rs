//! The parts of `tokenizer_config.json` and `tokenizer.json` that a model card needs. Everything else is passed
//! over as it is read: a tree of values would take many times the files' bytes.

use std::collections::BTreeMap;
use std::fmt;
use std::marker::PhantomData;

use oarlock_types::TokenId;
use serde::Deserialize;
use serde::de::{Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

/// Of `tokenizer_config.json`.
#[derive(Default, Deserialize)]
pub(super) struct TokenizerConfig {
    #[serde(default)]
    pub(super) add_bos_token: Flag,
    #[serde(default)]
    pub(super) chat_template: Template,
}

/// A flag; whatever is none says nothing.
#[derive(Clone, Copy, Default)]
pub(super) struct Flag(pub(super) Option<bool>);

/// A template, or several of which one is called `default`.
#[derive(Default)]
pub(super) struct Template(pub(super) Option<String>);

#[derive(Deserialize)]
struct NamedTemplate {
    name: String,
    template: String,
}

impl<'de> Deserialize<'de> for Flag {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(FlagVisitor)
    }
}

struct FlagVisitor;

impl<'de> Visitor<'de> for FlagVisitor {
    type Value = Flag;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("anything")
    }

    fn visit_bool<E>(self, flag: bool) -> Result<Flag, E> {
        Ok(Flag(Some(flag)))
    }

    fn visit_unit<E>(self) -> Result<Flag, E> {
        Ok(Flag(None))
    }

    fn visit_i64<E>(self, _: i64) -> Result<Flag, E> {
        Ok(Flag(None))
    }

    fn visit_u64<E>(self, _: u64) -> Result<Flag, E> {
        Ok(Flag(None))
    }

    fn visit_f64<E>(self, _: f64) -> Result<Flag, E> {
        Ok(Flag(None))
    }

    fn visit_str<E>(self, _: &str) -> Result<Flag, E> {
        Ok(Flag(None))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Flag, A::Error> {
        while list.next_element::<IgnoredAny>()?.is_some() {}
        Ok(Flag(None))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Flag, A::Error> {
        while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        Ok(Flag(None))
    }
}

impl<'de> Deserialize<'de> for Template {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(TemplateVisitor)
    }
}

struct TemplateVisitor;

impl<'de> Visitor<'de> for TemplateVisitor {
    type Value = Template;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a chat template, or a list of named ones")
    }

    fn visit_unit<E>(self) -> Result<Template, E> {
        Ok(Template(None))
    }

    fn visit_str<E>(self, text: &str) -> Result<Template, E> {
        Ok(Template(Some(text.to_owned())))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Template, A::Error> {
        let mut found = None;
        while let Some(NamedTemplate { name, template }) = list.next_element()? {
            if name == "default" {
                found = Some(template);
            }
        }
        Ok(Template(found))
    }
}

/// Of `tokenizer.json`: what is put around a text.
#[derive(Deserialize)]
struct PostProcessed {
    post_processor: Option<Processor>,
}

#[derive(Deserialize)]
struct Processor {
    #[serde(rename = "type")]
    kind: String,
    #[serde(default)]
    processors: Vec<Processor>,
    #[serde(default)]
    single: First<Piece>,
    #[serde(default)]
    special_tokens: BTreeMap<String, SpecialToken>,
}

#[derive(Deserialize)]
struct Piece {
    #[serde(rename = "SpecialToken")]
    special_token: Option<Named>,
}

#[derive(Deserialize)]
struct Named {
    id: String,
}

#[derive(Deserialize)]
struct SpecialToken {
    #[serde(default)]
    ids: First<u32>,
}

/// The first element of a list.
struct First<T>(Option<T>);

impl<T> Default for First<T> {
    fn default() -> Self {
        Self(None)
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for First<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_seq(FirstVisitor(PhantomData))
    }
}

struct FirstVisitor<T>(PhantomData<T>);

impl<'de, T: Deserialize<'de>> Visitor<'de> for FirstVisitor<T> {
    type Value = First<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<First<T>, A::Error> {
        let first = list.next_element()?;
        while list.next_element::<IgnoredAny>()?.is_some() {}
        Ok(First(first))
    }
}

/// The token that the tokenizer's template puts before a text, if it does.
pub(super) fn first_of_template(tokenizer: &str) -> Option<TokenId> {
    let whole: PostProcessed = serde_json::from_str(tokenizer).ok()?;
    let outer = whole.post_processor?;
    let mut all = std::iter::once(&outer).chain(&outer.processors);
    let template = all.find(|processor| processor.kind == "TemplateProcessing")?;
    let name = &template.single.0.as_ref()?.special_token.as_ref()?.id;
    template.special_tokens.get(name)?.ids.0.map(TokenId)
}
