/* What cppcheck cannot see of jansson: its loops over members. */
#define json_array_foreach(a, i, v)                                                                \
    for ((i) = 0; (i) < json_array_size(a) && ((v) = json_array_get(a, i)) != 0; (i)++)
#define json_object_foreach(o, k, v) for (k = 0; next_member(o, &k, &v);)
