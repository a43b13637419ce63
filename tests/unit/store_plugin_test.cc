// Stores out of shared libraries: the example in its three forms, libraries that do not fit, and what passes between.

#include <dlfcn.h>

#include <algorithm>
#include <array>

#include "store_rig.h"
#include "target/store/plugin_queue.h"
#include "target/store/plugin_store.h"

using namespace rbt;
using namespace rbt::target;
using namespace rbt::target::test;

namespace {

std::string example(const std::string& form) {
  return std::string(RBT_EXAMPLES) + "/ram_store_" + form + ".so";
}
std::string misfit(const std::string& how) {
  return std::string(RBT_MISFITS) + "/misfit_" + how + ".so";
}

std::string refusal(const std::string& how) {
  StoreRig rig;
  return rig.open_error("plugin:" + misfit(how));
}
bool has(const std::string& text, const std::string& part) {
  INFO(text);
  return text.find(part) != std::string::npos;
}

/// The plugin that answers when it is told to, as the test sees it.
struct Gate {
  explicit Gate(const std::string& path) : library(::dlopen(path.c_str(), RTLD_NOW)) {
    REQUIRE(library != nullptr);
    held = reinterpret_cast<std::size_t (*)()>(::dlsym(library, "gate_held"));
    longest = reinterpret_cast<std::uint64_t (*)()>(::dlsym(library, "gate_longest"));
    let_go = reinterpret_cast<void (*)()>(::dlsym(library, "gate_let_go"));
  }
  ~Gate() { ::dlclose(library); }
  void* library;
  std::size_t (*held)();
  std::uint64_t (*longest)();
  void (*let_go)();
};

}  // namespace

TEST_CASE("A plugin's disk keeps what is written, in whichever way the plugin works") {
  StoreRig rig;
  const std::string form = GENERATE("async", "blocking", "mapped");
  INFO(form);
  rig.open("plugin:" + example(form) + ",size=16777216");
  const Geometry geometry = rig.store->geometry();
  CHECK(geometry.blocks == Blocks(32768));
  CHECK_FALSE(geometry.write_cache);
  CHECK(rig.store->identity() != Identity{});
  CHECK(rig.journal.count("a disk that forgets everything") == 1);
  const auto data = pattern(1 << 20, 3);
  CHECK(rig.write(100, data) == StoreStatus::ok);
  CHECK(rig.write(4000, pattern(512, 4), Durability::durable) == StoreStatus::ok);
  CHECK(rig.must_read(100, 2048) == data);
  CHECK(rig.must_read(4000, 1) == pattern(512, 4));
  CHECK(rig.flush() == StoreStatus::ok);
  CHECK(rig.discard({StoreRig::range(0, 8), StoreRig::range(16, 0), StoreRig::range(32, 8)}) == StoreStatus::ok);
  CHECK(rig.write_zeroes(StoreRig::range(101, 2000)) == StoreStatus::ok);
  CHECK(rig.must_read(101, 2000) == std::vector<std::byte>(2000 * 512));
  CHECK(rig.must_read(100, 1) == std::vector(data.begin(), data.begin() + 512));
  CHECK(rig.must_read(2101, 1) == std::vector(data.begin() + 2001 * 512, data.begin() + 2002 * 512));
  rig.close();
}

TEST_CASE("Many requests of a plugin are under way together, in every form, and more than there are buffers") {
  StoreRig rig(Bytes(2 * kMiB));
  const std::string form = GENERATE("async", "blocking", "mapped");
  INFO(form);
  rig.open("plugin:" + example(form) + ",size=67108864");
  struct One {
    Lease lease;
    Waited request;
    bool committing = false;
    bool released = false;
  };
  std::vector<std::unique_ptr<One>> all;
  for (std::uint64_t i = 0; i < 200; ++i) {
    all.push_back(std::make_unique<One>());
    One& one = *all.back();
    one.lease = rig.lease(StoreRig::range(i * 128, 128), Intent::write);
    one.request.began(rig.queue->acquire(one.lease, one.request));
  }
  rig.run_until([&] {
    for (std::size_t i = 0; i < all.size(); ++i) {
      One& one = *all[i];
      if (!one.request.done() || one.released) continue;
      if (!one.committing) {
        StoreRig::fill(one.lease, pattern(65536, i));
        one.committing = true;
        one.request.calls = 0;
        one.request.began(rig.queue->commit(one.lease, Durability::cached, one.request));
      } else {
        one.released = true;
        rig.queue->release(one.lease);
      }
    }
    return std::all_of(all.begin(), all.end(), [](auto& one) { return one->released; });
  });
  for (std::size_t i = 0; i < all.size(); ++i) {
    CHECK(all[i]->request.status == StoreStatus::ok);
    CHECK(rig.must_read(i * 128, 128) == pattern(65536, i));
  }
  rig.close();
}

TEST_CASE("A plugin's memory is the lease: no copy") {
  StoreRig rig;
  rig.open("plugin:" + example("mapped") + ",size=1048576");
  CHECK(rig.domain.last_span.size == 1048576);
  CHECK(rig.domain.last_span.fd >= 0);
  Lease lease = rig.lease(StoreRig::range(3, 2), Intent::read);
  REQUIRE(rig.acquire(lease) == StoreStatus::ok);
  CHECK(lease.segments[0].data == rig.domain.last_span.data + 3 * 512);
  rig.queue->release(lease);
  CHECK(rig.write(3, pattern(512, 1)) == StoreStatus::ok);
  CHECK(rig.queue->bytes_copied() == 0);
  rig.close();
}

TEST_CASE(
    "A plugin is not asked to read what it is changing, nor to change what it is reading, nor for more than it takes") {
  StoreRig rig;
  const std::string path = misfit("").replace(misfit("").rfind("misfit_"), std::string::npos, "gated_plugin.so");
  const Gate gate(path);
  rig.open("plugin:" + path);
  const auto other = rig.open_queue();  // of another reactor's, as far as the lock can tell
  const auto change = GENERATE(as<std::string>{}, "write", "zeroes", "discard");
  INFO(change);
  const auto settle = [&] {
    while (gate.held() != 0) {
      gate.let_go();
      rig.reactor().turn();
    }
  };
  Lease write = rig.lease(StoreRig::range(0, 128), Intent::write);
  Waited changed;
  const std::array ranges{write.range};
  REQUIRE(rig.acquire(write) == StoreStatus::ok);
  rig.fill(write, pattern(65536, 1));
  changed.began(change == "write" ? rig.queue->commit(write, Durability::cached, changed)
                : change == "zeroes"
                    ? rig.queue->write_zeroes(write.range, StoreQueue::Deallocate::no, Durability::cached, changed)
                    : rig.queue->discard(ranges, changed));
  CHECK(gate.held() == 1);
  Lease inside = rig.lease(StoreRig::range(127, 2), Intent::read);
  Lease beside = rig.lease(StoreRig::range(128, 1), Intent::read);
  Waited read;
  Waited free;
  read.began(other->acquire(inside, read));
  free.began(other->acquire(beside, free));
  rig.reactor().turn();
  CHECK(gate.held() == 2);  // the one beside
  settle();
  CHECK(changed.status == StoreStatus::ok);
  CHECK(free.status == StoreStatus::ok);
  CHECK(read.status == StoreStatus::ok);
  const auto expected = change == "write" ? pattern(65536, 1) : std::vector<std::byte>(65536);
  CHECK(std::equal(expected.end() - 512, expected.end(), rig.contents(inside).begin()));
  if (change == "write") CHECK(gate.longest() == 16384);  // its transfer_max
  // And the other way round.
  Lease again = rig.lease(StoreRig::range(0, 32), Intent::read);
  Waited reading;
  reading.began(other->acquire(again, reading));
  CHECK(gate.held() == 1);
  Waited zeroed;
  zeroed.began(rig.queue->write_zeroes(StoreRig::range(31, 1), StoreQueue::Deallocate::no, Durability::cached, zeroed));
  CHECK(gate.held() == 1);
  settle();
  CHECK(zeroed.status == StoreStatus::ok);
  CHECK(rig.contents(again) == std::vector(expected.begin(), expected.begin() + 16384));
  rig.queue->release(write);
  for (Lease* const lease : {&inside, &beside, &again})
    other->release(*lease);
}

TEST_CASE("A plugin that does not fit says what was expected and what was seen") {
  StoreRig rig;
  CHECK(has(rig.open_error("plugin:"), "the path of a store plugin is missing"));
  CHECK(has(rig.open_error("plugin:/no/such.so"), "plugin '/no/such.so': No such file or directory"));
  CHECK(has(rig.open_error("plugin:/etc/passwd"), "it cannot be loaded"));
  CHECK(has(refusal("no_symbol"), "it has no symbol rbt_store_plugin_entry, which every store plugin exports"));
  CHECK(has(refusal("wrong_version"), "it is of version 7, version 1 is expected"));
  CHECK(has(refusal("too_small"), "its table has 80 bytes, at least 96 are expected in version 1"));
  CHECK(has(refusal("no_table"), "rbt_store_plugin_entry() returned nothing, a table is expected"));
  CHECK(has(refusal("no_calls"), "its table has null where open, submit or execute is expected"));
  CHECK(has(refusal("refuses"),
            "(misfit): it refuses to open: the key is under the mat, not here; its options: there are none"));
  CHECK(has(refusal("odd_size"), "describe(): size is 1000, whole blocks of 512 are expected"));
  CHECK(has(refusal("odd_block"), "describe(): block_size is 520, 512, 1024, 2048 or 4096 is expected"));
  CHECK(has(rig.open_error("plugin:" + example("async") + ",size=4096,fast"),
            "it refuses to open: size= and a multiple"));
}
