/* Plugins that do not fit: MISFIT says how. */
#include <stddef.h>
#include <stdio.h>
#include <string.h>

#include "target/store/rbt_store_plugin.h"

enum misfit { NO_SYMBOL = 1, WRONG_VERSION, TOO_SMALL, NO_TABLE, NO_CALLS, REFUSES, ODD_SIZE, ODD_BLOCK };

#if MISFIT != 1
static int open_disk(const struct rbt_host* host, const struct rbt_option* options, size_t count, void** store,
                     char* error, size_t error_size) {
  (void)host, (void)options, (void)count;
  *store = "a disk";
  if (MISFIT == REFUSES) snprintf(error, error_size, "the key is under the mat, not here");
  return MISFIT == REFUSES;
}
static void close_disk(void* store) {
  (void)store;
}
static int describe(void* store, struct rbt_description* description, char* error, size_t error_size) {
  (void)store, (void)error, (void)error_size;
  description->size = MISFIT == ODD_SIZE ? 1000 : 4096;
  description->block_size = MISFIT == ODD_BLOCK ? 520 : 512;
  return 0;
}
static int execute(void* store, struct rbt_request* request) {
  (void)store, (void)request;
  return RBT_OK;
}

static const struct rbt_store_plugin plugin = {
    .struct_size = MISFIT == TOO_SMALL ? offsetof(struct rbt_store_plugin, submit) : sizeof plugin,
    .version = MISFIT == WRONG_VERSION ? 7 : RBT_STORE_PLUGIN_VERSION,
    .name = "misfit",
    .help = "there are none",
    .open = MISFIT == NO_CALLS ? NULL : open_disk,
    .close = close_disk,
    .describe = describe,
    .execute = MISFIT == NO_CALLS ? NULL : execute,
};

const struct rbt_store_plugin* rbt_store_plugin_entry(void) {
  return MISFIT == NO_TABLE ? NULL : &plugin;
}
#else
int nothing_to_see_here;
#endif
