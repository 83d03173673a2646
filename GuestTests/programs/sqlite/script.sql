-- Tables, indexes, joins, aggregates, windows, text and floats, a transaction undone, a file checked.
pragma page_size = 1024;
pragma cache_size = 100;
create table person (id integer primary key, name text not null, height real, town integer references town(id));
create table town (id integer primary key, name text unique, size integer);
create table purchase (id integer primary key, person integer, amount numeric, note blob);
insert into town select value, 'town ' || (value * 7919 % 997), value * value % 10007 from generate_series(1, 300);
insert into person
    select value, printf('%x-%s', value * 2654435761 % 4294967296, char(97 + value % 26)), 1.5 + (value * 37 % 500) / 1000.0,
        1 + value * 31 % 300
    from generate_series(1, 20000);
begin;
insert into purchase
    select value, 1 + value * 7919 % 20000, round((value * 48271 % 65537) / 7.0, 2), zeroblob(value % 40)
    from generate_series(1, 60000);
commit;
create index purchase_person on purchase(person, amount);
create index person_name on person(name collate nocase);
analyze;
select count(*), sum(height), avg(height), min(name), max(name), total(height * height) from person;
select town.name, count(*), printf('%.6f', sum(amount)), max(amount), group_concat(distinct person.id % 5)
    from person join town on town.id = person.town join purchase on purchase.person = person.id
    group by town.id having count(*) > 150 order by sum(amount) desc, town.name limit 15;
select name, height, rank() over (order by height desc, id), sum(height) over (order by id rows 3 preceding)
    from person where id % 1777 = 0 order by id;
with recursive collatz(start, n, steps) as (
    select value, value, 0 from generate_series(1, 3000)
    union all
    select start, case when n % 2 = 0 then n / 2 else 3 * n + 1 end, steps + 1 from collatz where n > 1)
    select start, max(steps) from collatz group by start order by 2 desc, 1 limit 5;
select sum(length(note)), hex(max(note)), sum(amount > 5000.5), count(distinct amount) from purchase;
select name from person where name like 'a%-_' and name glob '*1*' order by name collate nocase limit 10;
begin;
delete from purchase where person % 2 = 0;
select changes(), count(*), sum(amount) from purchase;
rollback;
update person set height = height * 1.01, name = upper(name) where town in (select id from town where size > 9000);
select changes(), sum(height), count(*) from person where name = upper(name);
select sin(1), exp(1), sqrt(2), pow(2, 0.5), round(2.5), 1e15 / 3, 9223372036854775807 + 1, -7 / 2, -7 % 3, 5 << 3;
select json_group_array(json_object('id', id, 'name', name)) from town where id <= 5;
select quote(zeroblob(3)), replace('a-b-c', '-', '+'), instr('needle', 'dl'), unicode('é'), trim('  x ');
explain query plan select * from person join purchase on person.id = purchase.person where person.name = 'x';
delete from purchase where id % 3 = 0;
drop index purchase_person;
vacuum;
pragma integrity_check;
