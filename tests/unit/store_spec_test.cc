// Store specs: what is understood, and what people are told when it is not.

#include "target/store/spec_text.h"

#include "store_rig.h"

using namespace rbt;
using namespace rbt::target;
using namespace rbt::target::test;

namespace {

const std::vector<SpecName> kKnown{{"ram", false}, {"file", true}, {"delay", true, true}, {"stats", false, true}};

std::string refusal(std::string_view spec) {
  const auto parts = parse_spec(spec, kKnown);
  REQUIRE_FALSE(parts);
  CHECK(parts.error().kind() == ErrorKind::invalid_argument);
  return parts.error().message();
}

}  // namespace

TEST_CASE("A spec is a name, an argument where the store takes one, and options") {
  const auto parts = parse_spec("file:/srv/a disk.img,block=4096,readonly", kKnown).value();
  REQUIRE(parts.size() == 1);
  CHECK(parts[0].name.text == "file");
  CHECK(parts[0].argument->text == "/srv/a disk.img");
  REQUIRE(parts[0].options.size() == 2);
  CHECK(parts[0].options[0].key.text == "block");
  CHECK(parts[0].options[0].value->text == "4096");
  CHECK(parts[0].options[1].key.text == "readonly");
  CHECK_FALSE(parts[0].options[1].value);
}

TEST_CASE("Layers stand before the store they wrap, each with its own options") {
  const auto parts = parse_spec("delay:5ms,jitter=1ms,file:/x,readonly", kKnown).value();
  REQUIRE(parts.size() == 2);
  CHECK(parts[0].name.text == "delay");
  CHECK(parts[0].argument->text == "5ms");
  CHECK(parts[0].options.size() == 1);
  CHECK(parts[1].name.text == "file");
  CHECK(parts[1].argument->text == "/x");
  CHECK(parts[1].options.size() == 1);
}

TEST_CASE("A layer that is told nothing is followed by the next at once") {
  for (const char* const spec : {"stats:delay:5ms,stats:file:/x,readonly", "stats:delay:read=5ms,stats:file:/x"}) {
    const auto parts = parse_spec(spec, kKnown).value();
    REQUIRE(parts.size() == 4);
    CHECK(parts[0].name.text == "stats");
    CHECK(parts[1].name.text == "delay");
    CHECK(parts[2].name.text == "stats");
    CHECK(parts[3].argument->text == "/x");
  }
  CHECK(parse_spec("stats:delay:read=5ms,stats:file:/x", kKnown).value()[1].options[0].value->text == "5ms");
  const auto silent = parse_spec("delay:stats:ram:size=1GiB", kKnown).value();
  REQUIRE(silent.size() == 3);
  CHECK_FALSE(silent[0].argument);
  CHECK(silent[2].options.size() == 1);
}

TEST_CASE("A comma in a path is written with a backslash, and other backslashes stand for themselves") {
  const auto parts = parse_spec(R"(file:/a\,b\\c\x20d,readonly)", kKnown).value();
  REQUIRE(parts.size() == 1);
  CHECK(parts[0].argument->text == R"(/a,b\c\x20d)");
  CHECK(parts[0].options.size() == 1);
}

TEST_CASE("A colon in an argument or a value begins no layer") {
  CHECK(parse_spec("file:delay:x", kKnown).value()[0].argument->text == "delay:x");
  CHECK(parse_spec("file:/x,uuid=urn:uuid:1", kKnown).value()[0].options[0].value->text == "urn:uuid:1");
}

TEST_CASE("A spec that is not understood points at the character") {
  CHECK(refusal("") ==
        "store '': a kind of store and a ':' come first; there are ram:, file:, delay:, stats:\n  \n  ^");
  CHECK(
      refusal("/dev/sda") ==
      "store '/dev/sda': a kind of store and a ':' come first; there are ram:, file:, delay:, stats:\n  /dev/sda\n  ^");
  CHECK(refusal("rom:size=1") ==
        "store 'rom:size=1': 'rom:' is none of ram:, file:, delay:, stats:\n  rom:size=1\n  ^");
  CHECK(refusal("file:/x,y:z") ==
        "store 'file:/x,y:z': 'y:' is none of ram:, file:, delay:, stats:; a ',' within a path is "
        "written '\\,'\n  file:/x,y:z\n          ^");
  CHECK(refusal("file:/x,,readonly") ==
        "store 'file:/x,,readonly': an option is expected here: key=value\n  file:/x,,readonly\n          ^");
  CHECK(refusal("file:/x,") == "store 'file:/x,': an option is expected here: key=value\n  file:/x,\n          ^");
  CHECK(refusal("ram:a=1,b,a") == "store 'ram:a=1,b,a': 'a' is given twice\n  ram:a=1,b,a\n            ^");
  CHECK(refusal(std::string("file:/x\0y", 9)) ==
        "store 'file:/x\\x00y': a NUL is not allowed\n  file:/x\\x00y\n         ^");
  CHECK(refusal(std::string(10000, 'x')) == "a store of 10000 characters: at most 8192 are allowed");
}

TEST_CASE("An option that is wrong is named, with what is allowed") {
  StoreRig rig;
  CHECK(rig.open_error("ram:size=1MiB,blok=512") ==
        "store 'ram:size=1MiB,blok=512': 'blok' is no option of ram: size=SIZE, block=512|1024|2048|4096, "
        "huge=auto|never, atomic=auto|in-place|shadow\n  ram:size=1MiB,blok=512\n                ^");
  CHECK(rig.open_error("ram:") == "store 'ram:': size=, like size=1GiB, is missing\n  ram:\n      ^");
  CHECK(rig.open_error("null:block=512") ==
        "store 'null:block=512': size=, like size=1GiB, is missing\n  null:block=512\n                ^");
  CHECK(rig.open_error("ram:size=12 parsecs").starts_with("store 'ram:size=12 parsecs': '12 parsecs' has a unit that"));
  CHECK(rig.open_error("ram:size=0") == "store 'ram:size=0': at least one block is needed\n  ram:size=0\n           ^");
  CHECK(rig.open_error("ram:size=1000,block=512") ==
        "store 'ram:size=1000,block=512': 1000 bytes are not whole blocks of 512: 1024 are\n  ram:size=1000,block=512\n"
        "           ^");
  CHECK(rig.open_error("null:size=8EiB") ==
        "store 'null:size=8EiB': at most 4 EiB are allowed\n  null:size=8EiB\n            ^");
  CHECK(rig.open_error("ram:size=1MiB,block=8192").find("a block has 512, 1024, 2048 or 4096 bytes, not '8192'") !=
        std::string::npos);
  CHECK(rig.open_error("ram:size=1MiB,huge=yes").find("'yes' is not one of auto, never") != std::string::npos);
  CHECK(rig.open_error("ram:size=").find("'size=' and a value are expected") != std::string::npos);
  CHECK(rig.open_error("ram:size").find("'size=' and a value are expected") != std::string::npos);
}

TEST_CASE("A layer that is wrong is pointed at") {
  StoreRig rig;
  CHECK(rig.open_error("delay:5ms") ==
        "store 'delay:5ms': 'delay:' wraps a store, which is missing: delay:…,file:/x\n  delay:5ms\n           ^");
  CHECK(rig.open_error("stats:").find("'stats:' wraps a store, which is missing") != std::string::npos);
  CHECK(rig.open_error("delay:ram:size=1MiB").find("a time, like delay:5ms, is missing") != std::string::npos);
  CHECK(rig.open_error("delay:5,ram:size=1MiB").find("\n        ^") != std::string::npos);
  CHECK(rig.open_error("delay:5ms-1ms,ram:size=1MiB").find("the longer time comes second") != std::string::npos);
  CHECK(rig.open_error("delay:2min,ram:size=1MiB").find("at most 60s are allowed") != std::string::npos);
  CHECK(rig.open_error("delay:5ms,compare=1ms,ram:size=1MiB").find("'compare' is no option of delay") !=
        std::string::npos);
  CHECK(rig.open_error("error:read+wirte,ram:size=1MiB") ==
        "store 'error:read+wirte,ram:size=1MiB': 'wirte' is not one of read, write, commit, flush, discard, "
        "write_zeroes\n  error:read+wirte,ram:size=1MiB\n        ^");
  CHECK(rig.open_error("error:read,nth=0,ram:size=1MiB").find("'0' is not a whole number from 1 on") !=
        std::string::npos);
  CHECK(rig.open_error("error:read,nth=1,every=2,ram:size=1MiB").find("only one of nth=, every= and probability=") !=
        std::string::npos);
  CHECK(rig.open_error("error:read,probability=2,ram:size=1MiB").find("'2' is not a probability") != std::string::npos);
  CHECK(rig.open_error("error:read,lba=9-3,ram:size=1MiB").find("lba=0-99") != std::string::npos);
  CHECK(rig.open_error("error:read,status=bad,ram:size=1MiB").find("'bad' is not one of read_error") !=
        std::string::npos);
  CHECK(rig.open_error("stats:x=1,ram:size=1MiB").find("'x' is no option of stats: it has none") != std::string::npos);
}

TEST_CASE("A store that something follows says that it wraps nothing") {
  StoreRig rig;
  CHECK(rig.open_error("ram:size=1MiB,null:size=1MiB") ==
        "store 'ram:size=1MiB,null:size=1MiB': 'ram:' is a store and wraps no other\n  ram:size=1MiB,null:size=1MiB\n"
        "                ^");
}
